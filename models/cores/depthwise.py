"""DwiseNeuro's core: inverted residual blocks of depthwise convolutions, and the cortex behind them."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.drop_path import DropPath
from models.encoder import Core
from models.pointwise import batch_norm, pointwise_batch_norm
from models.readouts.cortex import Cortex
from models.resize import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseConfig:
    """What the core is made of; see ``DwiseNeuroConfig`` for the fields."""

    stem_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    expansion: int
    spatial_kernel: int
    temporal_kernel: int
    squeeze: int
    drop_path: float
    cortex_channels: tuple[int, ...]
    cortex_groups: int
    cortex_drop_path: float


def sinusoidal_code(size: int, dim: int) -> Float[Tensor, "size dim"]:
    """Return sines, then cosines, of the position at frequencies 10000^(-j / dim), j = 0, 2, ...

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with sines and cosines in two halves.
    """
    frequencies = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(size, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_code(sizes: tuple[int, int, int], channels: int) -> Float[Tensor, "t h w d"]:
    """Return the code of time, then row, then column, side by side in the channels.

    Every axis gets ``2 ceil(channels / 6)`` channels; what exceeds ``channels`` is cut from the column's.
    """
    dim = 2 * math.ceil(channels / 6)
    t, h, w = (sinusoidal_code(size, dim) for size in sizes)
    code = torch.cat(
        [
            t[:, None, None].expand(*sizes, dim),
            h[None, :, None].expand(*sizes, dim),
            w[None, None].expand(*sizes, dim),
        ],
        dim=-1,
    )
    return code[..., :channels]


class SqueezeExcite(nn.Module):
    """A gate per clip and channel from the channel's mean over time and space."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b d"]:
        """Return the gates."""
        gates: Tensor = self.layers(reduce(features, "b t h w d -> b d", "mean"))
        return gates


class DepthwiseBlock(nn.Module):
    """Expand the channels, convolve each alone in space and then in time, gate them, join them again.

    Args:
        in_channels: channels of the features.
        out_channels: channels of the result.
        stride: spatial stride.
        drop_path: rate at which a clip skips the block.
        config: what all blocks share.

    Source:
        DwiseNeuro in Turishcheva et al. 2024, arXiv:2407.09100, A.1, after Sandler et al. 2018, MobileNetV2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, drop_path: float, config: DepthwiseConfig
    ) -> None:
        super().__init__()
        hidden, space, time = in_channels * config.expansion, config.spatial_kernel, config.temporal_kernel
        self.out_channels, self.stride = out_channels, stride
        self.expand = nn.Conv3d(in_channels, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm1d(hidden)
        self.spatial = nn.Conv3d(
            hidden,
            hidden,
            (1, space, space),
            stride=(1, stride, stride),
            padding=(0, space // 2, space // 2),
            groups=hidden,
            bias=False,
        )
        self.spatial_norm = nn.BatchNorm1d(hidden)
        self.temporal = nn.Conv3d(
            hidden, hidden, (time, 1, 1), padding=(time // 2, 0, 0), groups=hidden, bias=False
        )
        self.temporal_norm = nn.BatchNorm1d(hidden)
        self.gate = SqueezeExcite(hidden, max(1, hidden // config.squeeze))
        self.project = nn.Conv3d(hidden, out_channels, 1, bias=False)
        self.project_norm = nn.BatchNorm1d(out_channels)
        self.shortcut_norm = nn.BatchNorm1d(out_channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h_out w_out e"]:
        """Transform the features of clips of any length."""
        sizes = (features.shape[1], features.shape[2], features.shape[3])
        code = position_code(sizes, features.shape[4]).to(features)
        features = features + code
        result: Tensor = self.drop_path(self._main(features)) + self._shortcut(features)
        return result

    def _main(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h_out w_out e"]:
        hidden = pointwise_batch_norm(features, self.expand.weight.flatten(1), self.expand_norm)
        hidden = self._depthwise_spatial(functional.silu(hidden))
        hidden = functional.silu(batch_norm(hidden, self.spatial_norm))
        hidden = self._depthwise_temporal(hidden)
        hidden = functional.silu(batch_norm(hidden, self.temporal_norm))
        return batch_norm(self._gated_projection(hidden), self.project_norm)

    def _depthwise_spatial(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h_out w_out d"]:
        weight = rearrange(self.spatial.weight, "d 1 1 kh kw -> d 1 kh kw")
        images = rearrange(features, "b t h w d -> (b t) d h w")
        convolved = functional.conv2d(
            images, weight, stride=self.stride, padding=weight.shape[-1] // 2, groups=len(weight)
        )
        result: Tensor = rearrange(convolved, "(b t) d h w -> b t h w d", b=len(features))
        return result

    def _depthwise_temporal(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        # Frames as the rows and all pixels as the columns of one image: torch has no fast 1D form of it.
        weight = rearrange(self.temporal.weight, "d 1 kt 1 1 -> d 1 kt 1")
        images = rearrange(features, "b t h w d -> b d t (h w)")
        convolved = functional.conv2d(images, weight, padding=(weight.shape[2] // 2, 0), groups=len(weight))
        result: Tensor = rearrange(convolved, "b d t (h w) -> b t h w d", h=features.shape[2])
        return result

    def _gated_projection(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w e"]:
        # The gates go into a matrix per clip, which is smaller than the features they would multiply.
        gates = self.gate(features)
        matrices = rearrange(gates, "b d -> b d 1") * rearrange(self.project.weight, "e d 1 1 1 -> d e")
        projected = torch.bmm(rearrange(features, "b t h w d -> b (t h w) d"), matrices.to(features.dtype))
        result: Tensor = projected.unflatten(1, features.shape[1:4])
        return result

    def _shortcut(self, features: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h_out w_out e"]:
        if self.stride > 1:
            for axis in (2, 3):
                size = features.shape[axis]
                kept = nearest(size, math.ceil(size / self.stride)).to(features.device)
                features = features.index_select(axis, kept)
        repeats = math.ceil(self.out_channels / features.shape[-1])
        return batch_norm(features.repeat(1, 1, 1, 1, repeats)[..., : self.out_channels], self.shortcut_norm)


class DepthwiseCore(Core):
    """Frames on a zero canvas, with behavior and pupil as constant planes, to a feature vector per frame.

    Constant planes and borders are materialized: five channels cost one percent of the first block's
    hundreds.

    Args:
        config: what the core is made of.
        frame_shape: rows and columns of a frame.
        canvas: rows and columns of the canvas, which has the frame in its middle.

    Raises:
        ValueError: a frame is larger than the canvas.
    """

    def __init__(
        self, config: DepthwiseConfig, frame_shape: tuple[int, int], *, canvas: tuple[int, int]
    ) -> None:
        super().__init__()
        if any(side > limit for side, limit in zip(frame_shape, canvas, strict=True)):
            raise ValueError(f"frames are {frame_shape} pixels, but must fit on canvas, {canvas}")
        self.canvas = canvas
        self.out_channels, self.out_shape = config.cortex_channels[-1], (1, 1)
        self.stem = nn.Conv3d(5, config.stem_channels, 1, bias=False)
        self.stem_norm = nn.BatchNorm1d(config.stem_channels)
        widths = (config.stem_channels, *config.channels)
        self.blocks = nn.ModuleList(
            DepthwiseBlock(
                widths[i],
                widths[i + 1],
                stride,
                drop_path=config.drop_path * i / len(config.strides),
                config=config,
            )
            for i, stride in enumerate(config.strides)
        )
        self.cortex = Cortex(
            (widths[-1], *config.cortex_channels),
            groups=config.cortex_groups,
            drop_path=config.cortex_drop_path,
        )
        initialize_convolutions(self)

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
    ) -> Float[Tensor, "b d t 1 1"]:
        """Return a feature vector for every frame of clips of any length."""
        planes = self._planes(video, torch.cat([behavior, pupil], dim=1))
        features = pointwise_batch_norm(planes, self.stem.weight.flatten(1), self.stem_norm)
        for block in self.blocks:
            features = block(features)
        pooled = reduce(features, "b t h w d -> b t d", "mean")
        vectors: Tensor = rearrange(self.cortex(pooled), "b t d -> b d t 1 1")
        return vectors

    def _planes(
        self, video: Float[Tensor, "b 1 t h w"], signals: Float[Tensor, "b 4 t"]
    ) -> Float[Tensor, "b t rows columns 5"]:
        rows, columns = (limit - side for limit, side in zip(self.canvas, video.shape[3:], strict=True))
        top, left = rows // 2, columns // 2
        on_canvas = functional.pad(video, (left, columns - left, top, rows - top))
        constant = signals[..., None, None].expand(-1, -1, -1, *self.canvas)
        return rearrange(torch.cat([on_canvas, constant], dim=1), "b c t h w -> b t h w c").contiguous()


def initialize_convolutions(module: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan_out) and zero the biases.

    Linear layers stand for convolutions of size 1 and are treated alike.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv3d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels / layer.groups
        elif isinstance(layer, nn.Linear):
            fan_out = layer.out_features
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
