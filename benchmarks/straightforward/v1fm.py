# ruff: noqa: ARG002 - every part is offered all signals, as in the encoder
"""Dynamic-V1FM with padded and rolled tokens, all attention weights at once, and one sampling per level."""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.straightforward.shared import Plain, gaussian_positions, sample
from models.encoder import Encoder

Sizes = tuple[int, int, int]


class PlainV1FM(Plain):
    """Windows as in the Swin transformer's own code, a level of the readout after another."""

    def __init__(self, encoder: Encoder, *, window: Sizes = (8, 7, 7), shift: Sizes = (4, 3, 3)) -> None:
        super().__init__(encoder)
        self.window, self.window_shift = window, shift

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Embed the patches and run the blocks."""
        core = self.encoder.core
        ends = [-size % patch for size, patch in zip(video.shape[2:], core.patches.patch, strict=True)]
        video = functional.pad(video, (0, ends[2], 0, ends[1], 0, ends[0]))
        tokens = core.patches.norm(core.patches.projection(video).movedim(1, -1))
        signals = torch.cat([behavior, pupil], dim=1).transpose(1, 2)
        for block in core.blocks:
            tokens = tokens + block.behavior.layers(signals).reshape(len(video), -1, 1, 1, tokens.shape[-1])
            tokens = tokens + self._attention(block.attention, tokens)
            tokens = tokens + self._mlp(block.mlp, tokens)
        return tokens.movedim(-1, 1)

    def _mlp(self, mlp: nn.Module, tokens: Tensor) -> Tensor:
        values, gates = mlp.input(tokens).chunk(2, dim=-1)
        hidden = (values * functional.silu(gates)).movedim(-1, 1)
        return mlp.output(functional.gelu(mlp.convolution(hidden)).movedim(1, -1))

    def _attention(self, attention: nn.Module, tokens: Tensor) -> Tensor:
        grid = tokens.shape[1:4]
        ends = [-size % side for size, side in zip(grid, self.window, strict=True)]
        padded = functional.pad(tokens, (0, 0, 0, ends[2], 0, ends[1], 0, ends[0]))
        sizes = padded.shape[1:4]
        shift = [
            0 if size == side else step
            for size, side, step in zip(sizes, self.window, self.window_shift, strict=True)
        ]
        rolled = padded.roll([-step for step in shift], dims=(1, 2, 3))
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for part in attention.qkv(self._windows(rolled)).chunk(3, dim=-1)
        )
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + self._bias(attention)
        mask = self._mask(sizes, shift).to(scores)
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        mixed = self._joined(attention.output(attended), sizes).roll(shift, dims=(1, 2, 3))
        return mixed[:, : grid[0], : grid[1], : grid[2]]

    def _windows(self, tokens: Tensor) -> Tensor:
        """Cut tokens (b t h w d) into windows, (b windows) tokens d."""
        b, t, h, w, d = tokens.shape
        wt, wh, ww = self.window
        cut = tokens.view(b, t // wt, wt, h // wh, wh, w // ww, ww, d)
        return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, d)

    def _joined(self, windows: Tensor, sizes: torch.Size) -> Tensor:
        """Undo ``_windows``."""
        counts = [size // side for size, side in zip(sizes, self.window, strict=True)]
        cut = windows.view(-1, *counts, *self.window, windows.shape[-1])
        return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *sizes, windows.shape[-1])

    def _mask(self, sizes: torch.Size, shift: list[int]) -> Tensor:
        """Return -100 between the tokens of a window that lie in different regions of the roll."""
        regions = torch.zeros(1, *sizes, 1)
        slices = [
            (slice(0, -side), slice(-side, -step), slice(-step, None)) if step else (slice(None),)
            for side, step in zip(self.window, shift, strict=True)
        ]
        for number, (t, h, w) in enumerate(product(*slices)):
            regions[:, t, h, w] = number
        windows = self._windows(regions)[..., 0]
        return torch.where(windows[:, :, None] == windows[:, None], 0.0, -100.0)

    def _bias(self, attention: nn.Module) -> Tensor:
        """Return the bias of every pair of places in a window, heads first."""
        places = torch.cartesian_prod(*(torch.arange(side) for side in self.window))
        offsets = places[:, None] - places[None] + torch.tensor(self.window) - 1
        _, rows, columns = (2 * side - 1 for side in self.window)
        index = (offsets[..., 0] * rows + offsets[..., 1]) * columns + offsets[..., 2]
        return attention.position_bias[index].movedim(-1, 0)

    def read(
        self, readout: nn.Module, features: Tensor, behavior: Tensor, pupil: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Sample, weight, resize and refine level by level."""
        num_clips, _, num_frames = features.shape[:3]
        positions = gaussian_positions(readout, num_clips * num_frames, shift)
        num_neurons = positions.shape[1]
        levels = [(sample(features, positions) * readout.weights).sum(dim=1)]
        for level in readout.levels:
            at = functional.interpolate(positions.mT, size=level.weights.shape[1], mode="nearest").mT
            read = (sample(features, at) * level.weights).sum(dim=1, keepdim=True)
            spread = functional.interpolate(read, size=num_neurons, mode="nearest")
            levels.append(level.refine(spread.mT)[..., 0])
        stacked = torch.stack(levels).unflatten(1, (num_clips, num_frames))
        return (readout.fusion(stacked) + readout.bias).transpose(1, 2)
