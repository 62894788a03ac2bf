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
        covariance: Covariance = "full",
    ) -> None:
        super().__init__()
        self.positions = GaussianPositions(spec, hidden, init_sigma, covariance=covariance)
        self.weights = nn.Parameter(torch.full((in_channels, spec.num_neurons), 1 / in_channels))
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
