"""The Gaussian readout: every neuron reads one position of the feature map."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.encoder import Readout, SessionSpec
from models.positions import Covariance, GaussianPositions
from models.sampling import sample_and_dot


class GaussianReadout(Readout):
    """Weight the features at each neuron's position, which is noisy while training.

    Args:
        spec: the session.
        in_channels: channels of the core's features.
        hidden: width of the position network.
        init_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the weights at the start, see ``initial_weights``.
        covariance: shape of the position noise.

    Source:
        Lurz et al. 2021, "Generalization in data-driven models of primary visual cortex", section 2;
        settings of the Sensorium 2023 starter kit.
    """

    def __init__(
        self,
        spec: SessionSpec,
        in_channels: int,
        *,
        hidden: int = 30,
        init_sigma: float = 1.0,
        weight_spread: float = 0.0,
        covariance: Covariance = "full",
    ) -> None:
        super().__init__()
        self.positions = GaussianPositions(spec, hidden, init_sigma, covariance=covariance)
        self.weights = nn.Parameter(initial_weights(in_channels, spec.num_neurons, spread=weight_spread))
        self.bias = nn.Parameter(spec.mean_response.detach().float().clone())

    def forward(
        self,
        features: Float[Tensor, "b d t h w"],
        *,
        behavior: Float[Tensor, "b 2 t"],  # noqa: ARG002 - every readout is offered it
        pupil: Float[Tensor, "b 2 t"],  # noqa: ARG002 - reaches this readout as the shift
        shift: Float[Tensor, "b t 2"] | None,
    ) -> Float[Tensor, "b n t"]:
        """Read each neuron's activity off every frame's features."""
        num_clips, _, num_frames, _, _ = features.shape
        positions = self.positions(num_clips * num_frames)
        if shift is not None:
            positions = positions + rearrange(shift, "b t xy -> (b t) 1 xy")
        frames = rearrange(features, "b d t h w -> (b t) d h w")
        read = sample_and_dot(frames, positions, self.weights) + self.bias
        return rearrange(read, "(b t) n -> b n t", b=num_clips)


def initial_weights(in_channels: int, num_neurons: int, *, spread: float) -> Float[Tensor, "d n"]:
    """Return what neurons make of the features at the start: their mean, as published, unless spread.

    Neurons that begin alike pull all channels in the same direction, and a core takes thousands of steps to
    tell them apart. Short trainings cannot wait for that.

    Args:
        in_channels: channels of the core's features.
        num_neurons: neurons of the session.
        spread: standard deviation of weights drawn around zero; 0 gives every neuron the mean.

    Raises:
        ValueError: the spread is negative.
    """
    if spread < 0:
        raise ValueError(f"weight_spread is {spread}, but must not be negative")
    if spread > 0:
        return spread * torch.randn(in_channels, num_neurons)
    return torch.full((in_channels, num_neurons), 1 / in_channels)
