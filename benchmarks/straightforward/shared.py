# ruff: noqa: ARG002 - every part is offered all signals, as in the encoder
"""What several of the straightforward models use."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import Encoder


class Plain(nn.Module):
    """A model that computes with the parameters of an encoder, in its own way."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, video: Tensor, behavior: Tensor, pupil: Tensor, *, session: str) -> Tensor:
        """Predict the responses of one session's neurons."""
        features = self.features(video, behavior, pupil)
        frames = features.shape[2]
        behavior, pupil = behavior[..., -frames:], pupil[..., -frames:]
        read = self.read(
            self.encoder.readouts[session], features, behavior, pupil, self.shift(session, pupil)
        )
        return self.encoder.output(read)

    def regularizer(self) -> Tensor:
        """Return the penalty on the core's parameters."""
        return self.encoder.regularizer()

    def shift(self, session: str, pupil: Tensor) -> Tensor | None:
        """Return the shift of each frame, where the model has a shifter."""
        return self.encoder.shifters[session](pupil) if session in self.encoder.shifters else None

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Compute the core's features, (b d t h w)."""
        raise NotImplementedError

    def read(
        self, readout: nn.Module, features: Tensor, behavior: Tensor, pupil: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Compute activity before the output nonlinearity, (b n t)."""
        raise NotImplementedError


class PlainGaussian(Plain):
    """A model with the plain Gaussian readout."""

    def read(
        self, readout: nn.Module, features: Tensor, behavior: Tensor, pupil: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Sample all channels at all positions, multiply with the weights and add up."""
        num_clips, _, num_frames = features.shape[:3]
        positions = gaussian_positions(readout, num_clips * num_frames, shift)
        sampled = sample(features, positions)
        read = (sampled * readout.weights).sum(dim=1) + readout.bias
        return read.unflatten(0, (num_clips, num_frames)).transpose(1, 2)


def gaussian_positions(readout: nn.Module, num_frames: int, shift: Tensor | None) -> Tensor:
    """Draw a position of each neuron in each frame, (f n 2)."""
    positions = readout.positions
    mean = positions.network(positions.coordinates).expand(num_frames, -1, -1)
    if positions.training:
        noise = torch.randn_like(mean)
        mean = (mean + (positions.sigma @ noise[..., None])[..., 0]).clamp(-1, 1)
    return mean if shift is None else mean + shift.flatten(0, 1)[:, None]


def sample(features: Tensor, positions: Tensor) -> Tensor:
    """Sample feature maps (b d t h w) at positions (f n 2): (f d n)."""
    maps = features.transpose(1, 2).flatten(0, 1)
    return functional.grid_sample(maps, positions[:, :, None], align_corners=True)[..., 0]


def batch_norm(features: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Normalize the channels (second axis) of features of any shape."""
    return functional.batch_norm(
        features,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )


def planes(video: Tensor, signals: Tensor) -> Tensor:
    """Append signals (b s t) to a video (b 1 t h w) as constant planes."""
    constant = signals[..., None, None].expand(*signals.shape, *video.shape[-2:])
    return torch.cat([video, constant], dim=1)
