# ruff: noqa: ARG002 - every part is offered all signals, as in the encoder
"""DwiseNeuro channels first, with 3D convolutions throughout."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.straightforward.shared import Plain, batch_norm, planes
from models.cores.depthwise import position_code
from models.readouts.cortex import channel_shuffle


class PlainDwiseNeuro(Plain):
    """One torch layer after another."""

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Run stem, blocks and cortex."""
        core = self.encoder.core
        rows, columns = (limit - side for limit, side in zip(core.canvas, video.shape[3:], strict=True))
        top, left = rows // 2, columns // 2
        on_canvas = functional.pad(video, (left, columns - left, top, rows - top))
        inputs = planes(on_canvas, torch.cat([behavior, pupil], dim=1))
        features = batch_norm(core.stem(inputs), core.stem_norm)
        for block in core.blocks:
            features = self._block(block, features)
        pooled = features.mean(dim=(3, 4))
        for layer in core.cortex:
            main = functional.silu(batch_norm(layer.mix(pooled), layer.norm))
            main = channel_shuffle(main.mT, layer.groups).mT
            shortcut = batch_norm(_repeated(pooled, layer.out_channels), layer.shortcut_norm)
            pooled = layer.drop_path(main) + shortcut
        return pooled[..., None, None]

    def _block(self, block: nn.Module, features: Tensor) -> Tensor:
        code = position_code((features.shape[2], features.shape[3], features.shape[4]), features.shape[1])
        features = features + code.movedim(-1, 0)
        hidden = functional.silu(batch_norm(block.expand(features), block.expand_norm))
        hidden = functional.silu(batch_norm(block.spatial(hidden), block.spatial_norm))
        hidden = functional.silu(batch_norm(block.temporal(hidden), block.temporal_norm))
        gates = block.gate.layers(hidden.mean(dim=(2, 3, 4)))
        main = batch_norm(block.project(hidden * gates[:, :, None, None, None]), block.project_norm)
        size = [features.shape[2], *(math.ceil(side / block.stride) for side in features.shape[3:])]
        shortcut = (
            functional.interpolate(features, size=size, mode="nearest") if block.stride > 1 else features
        )
        shortcut = batch_norm(_repeated(shortcut, block.out_channels), block.shortcut_norm)
        return block.drop_path(main) + shortcut

    def read(
        self, readout: nn.Module, features: Tensor, behavior: Tensor, pupil: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Apply a grouped convolution."""
        read = readout.weights(readout.dropout(features[..., 0, 0]))
        return read[:, : readout.num_neurons]


def _repeated(features: Tensor, channels: int) -> Tensor:
    """Repeat the channels cyclically."""
    index = torch.arange(channels, device=features.device) % features.shape[1]
    return features[:, index]
