"""ViV1T's readout: the Gaussian readout, with features that move with the animal's state."""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.encoder import SessionSpec
from models.positions import Covariance
from models.readouts.gaussian import GaussianReadout


class BehaviorGaussianReadout(GaussianReadout):
    """Add a code of pupil dilation, running speed and gaze to the features every neuron reads.

    The code is the same for all neurons of a frame, so its part of the result is ``code @ weights``; it
    need not be added to each neuron's features.

    Args:
        spec: the session.
        in_channels: channels of the core's features.
        hidden: width of the position network.
        init_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the weights at the start, see ``initial_weights``.
        covariance: shape of the position noise.

    Source:
        Released code of ViV1T (the paper does not mention this path).
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
        super().__init__(
            spec,
            in_channels,
            hidden=hidden,
            init_sigma=init_sigma,
            weight_spread=weight_spread,
            covariance=covariance,
        )
        self.behavior_code = nn.Sequential(
            nn.Linear(4, in_channels),
            nn.LayerNorm(in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
            nn.Tanh(),
        )

    def forward(
        self,
        features: Float[Tensor, "b d t h w"],
        *,
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        shift: Float[Tensor, "b t 2"] | None,
    ) -> Float[Tensor, "b n t"]:
        """Read each neuron's activity off every frame's features and behavior."""
        seen = super().forward(features, behavior=behavior, pupil=pupil, shift=shift)
        signals = rearrange(torch.cat([behavior, pupil], dim=1), "b signal t -> b t signal")
        felt: Tensor = einsum(self.behavior_code(signals), self.weights, "b t d, d n -> b n t")
        return seen + felt
