"""Where on the feature map each neuron reads, predicted from where it sits in cortex."""

from typing import Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from models.encoder import SessionSpec
from models.eval_cache import EvalCache

Covariance = Literal["full", "uncorrelated", "isotropic"]
"""Shape of the noise on a neuron's position: any ellipse, one along the axes, or a circle."""

COVARIANCES: tuple[str, ...] = get_args(Covariance)


class GaussianPositions(nn.Module):
    """A Gaussian of positions per neuron: sampled while training, its mean in evaluation.

    All means of a session come from one small network of the neurons' cortical coordinates.

    Args:
        spec: the session.
        hidden: width of the network's hidden layer; 30 in the baselines and ViV1T, 32 in V1FM.
        init_sigma: the noise's factors start uniformly between minus and plus this number; 1 in the
            baselines and ViV1T, 0.2 in V1FM.
        covariance: shape of the noise.

    Source:
        Sensorium 2023 starter kit, "full Gaussian 2d" readout with cortical position predictor.
    """

    coordinates: Tensor

    def __init__(
        self, spec: SessionSpec, hidden: int, init_sigma: float, *, covariance: Covariance = "full"
    ) -> None:
        super().__init__()
        _check(hidden, init_sigma, covariance)
        self.covariance = covariance
        self.register_buffer("coordinates", normalize_coordinates(spec.coordinates_um), persistent=False)
        self.network = nn.Sequential(nn.Linear(2, hidden), nn.ELU(), nn.Linear(hidden, 2), nn.Tanh())
        shape = {"full": (2, 2), "uncorrelated": (2,), "isotropic": (1,)}[covariance]
        self.sigma = nn.Parameter(torch.empty(spec.num_neurons, *shape).uniform_(-init_sigma, init_sigma))
        self.cache = EvalCache()

    def forward(self, num_frames: int) -> Float[Tensor, "f n 2"]:
        """Return column and row of each neuron in each frame, in half widths and half heights.

        Noise is drawn for every frame on its own and kept within the map; what shifts the positions
        afterwards may move them out of it.
        """
        mean = self.mean()
        if not self.training:
            return mean.expand(num_frames, -1, -1)
        noise = torch.randn(num_frames, *mean.shape, device=mean.device, dtype=mean.dtype)
        return (mean + self._scaled(noise)).clamp(-1, 1)

    def mean(self) -> Float[Tensor, "n 2"]:
        """Return the mean position of each neuron."""
        return self.cache.get((self.coordinates, *self.network.parameters()), self._mean)

    def _mean(self) -> Float[Tensor, "n 2"]:
        # Half precision would move positions by a tenth of a pixel.
        with torch.autocast(self.coordinates.device.type, enabled=False):
            mean: Tensor = self.network(self.coordinates)
        return mean

    def _scaled(self, noise: Float[Tensor, "f n 2"]) -> Float[Tensor, "f n 2"]:
        """Give standard normal noise the covariance ``sigma sigma^T``."""
        if self.covariance != "full":
            return self.sigma * noise
        with torch.autocast(noise.device.type, enabled=False):
            return einsum(self.sigma, noise, "n i j, f n j -> f n i")


def normalize_coordinates(coordinates_um: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
    """Center the coordinates along the cortical surface and scale them, together, to at most 1."""
    surface = coordinates_um[:, :2].float()
    centered = surface - surface.mean(dim=0)
    # A single neuron (or all in one place) has no extent to scale by.
    return centered / centered.abs().max().clamp(min=torch.finfo(torch.float32).tiny)


def _check(hidden: int, init_sigma: float, covariance: str) -> None:
    if hidden < 1:
        raise ValueError(f"hidden width of the position network is {hidden}, but must be at least 1")
    if init_sigma <= 0:
        raise ValueError(f"init_sigma is {init_sigma}, but must be positive")
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance is {covariance!r}, but must be one of {', '.join(COVARIANCES)}")
