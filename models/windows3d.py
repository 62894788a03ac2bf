"""Shifted 3D windows: which tokens attend to each other, worked out once for a grid.

A grid of tokens is zero-padded to whole windows, rolled and cut into windows. Doing that to the tokens
costs three copies forward and backward, and attends from and to padding that nobody reads. Both are avoided
exactly:

- windows whose tokens lie alike form a *group*, which shares one bias; sorting the tokens by window makes
  every group
  a plain batch (``WindowLayout.order``);
- padded queries are never read, so they are left out;
- padded tokens all have the same key and value (a projection of zero), so they join into one key whose bias
  is the
  log of the summed exponentials of theirs.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

OTHER_REGION_BIAS = -100.0
"""Added between tokens that only the roll brought into one window (Swin's value)."""


@dataclass(frozen=True, slots=True)
class AxisWindow:
    """One window along one axis, as positions inside the window.

    Attributes:
        tokens: where the grid's tokens are, by their index on the grid.
        positions: place of each of ``tokens`` in the window.
        padding: places in the window that hold padding.
        regions: Swin's region number of every place in the window.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    padding: tuple[int, ...]
    regions: tuple[int, ...]

    @property
    def kind(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What two windows must share to use the same bias."""
        return self.positions, self.regions


def axis_windows(size: int, *, window: int, shift: int) -> list[AxisWindow]:
    """Cut one axis into windows after zero padding at its end and a roll by ``-shift``.

    Args:
        size: tokens on the axis.
        window: tokens of a window.
        shift: tokens the axis is rolled by; an axis that fits into one window is not rolled.

    Source:
        Liu et al. 2022, Video Swin Transformer, section 3.2 (shifted windows, masking of regions).
    """
    padded = math.ceil(size / window) * window
    shift = 0 if padded == window else shift
    windows = []
    for start in range(0, padded, window):
        source = [(place + shift) % padded for place in range(start, start + window)]
        inside = [position for position, index in enumerate(source) if index < size]
        region = [
            0 if shift == 0 or place < padded - window else 1 if place < padded - shift else 2
            for place in range(start, start + window)
        ]
        windows.append(
            AxisWindow(
                tokens=tuple(source[position] for position in inside),
                positions=tuple(inside),
                padding=tuple(position for position in range(window) if position not in inside),
                # Only equality within a window counts, so numbers start at 0 in each window.
                regions=tuple(r - region[0] for r in region),
            )
        )
    return windows


def relative_position_index(window: tuple[int, int, int]) -> Int[Tensor, "l l"]:
    """Return, for query and key position of a window, the row of the relative-position table.

    Rows are ordered by (query - key) along time, then rows, then columns, each from most negative to most
    positive.
    """
    grid = torch.cartesian_prod(*(torch.arange(size) for size in window))
    offsets = grid[:, None] - grid[None] + torch.tensor(window) - 1
    strides = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
    return (offsets * strides).sum(-1)


class WindowGroup(nn.Module):
    """Windows whose tokens lie alike: they share the positions, the masked pairs and therefore the bias.

    Attributes:
        num_windows: windows of the group.
        num_tokens: tokens (not padding) of each window.
        padded: whether the windows hold padding, which acts as one more key.
    """

    pair_index: Int[Tensor, "l l"]
    pair_mask: Float[Tensor, "l l"]
    padding_index: Int[Tensor, "l m"]
    padding_mask: Float[Tensor, "l m"]

    def __init__(
        self,
        positions: Int[Tensor, " l"],
        padding: Int[Tensor, " m"],
        *,
        regions: Int[Tensor, " all"],
        index: Int[Tensor, "all all"],
        num_windows: int,
    ) -> None:
        super().__init__()
        self.num_windows, self.num_tokens, self.padded = num_windows, len(positions), len(padding) > 0
        mask = torch.where(regions[:, None] == regions[None], 0.0, OTHER_REGION_BIAS)
        self.register_buffer("pair_index", index[positions][:, positions], persistent=False)
        self.register_buffer("pair_mask", mask[positions][:, positions], persistent=False)
        self.register_buffer("padding_index", index[positions][:, padding], persistent=False)
        self.register_buffer("padding_mask", mask[positions][:, padding], persistent=False)

    def bias(self, table: Float[Tensor, "heads offsets"]) -> Float[Tensor, "heads l keys"]:
        """Return relative-position bias plus mask; the last key stands for all padding, if there is any."""
        pairs = _gathered(table, self.pair_index) + self.pair_mask
        if not self.padded:
            return pairs
        padding = _gathered(table, self.padding_index) + self.padding_mask
        return torch.cat([pairs, padding.logsumexp(-1, keepdim=True)], dim=-1)


def _gathered(table: Float[Tensor, "heads offsets"], index: Int[Tensor, "l m"]) -> Float[Tensor, "heads l m"]:
    # An index of two axes is several times slower, most of all in its gradient.
    gathered: Tensor = table.index_select(1, index.flatten()).unflatten(1, index.shape)
    return gathered


class WindowLayout(nn.Module):
    """All windows of a grid, grouped.

    Attributes:
        groups: the kinds of windows there are (at most eight unless the padding straddles two windows).
        sizes: tokens of each group.
        order: tokens of the flattened grid, group by group and window by window.
        places: inverse of ``order``.
    """

    order: Int[Tensor, " tokens"]
    places: Int[Tensor, " tokens"]

    def __init__(
        self,
        grid: tuple[int, int, int],
        *,
        window: tuple[int, int, int],
        shift: tuple[int, int, int],
    ) -> None:
        super().__init__()
        axes = [axis_windows(n, window=w, shift=s) for n, w, s in zip(grid, window, shift, strict=True)]
        members: dict[tuple[object, ...], list[tuple[AxisWindow, ...]]] = {}
        for triple in product(*axes):
            if all(axis.tokens for axis in triple):
                members.setdefault(tuple(axis.kind for axis in triple), []).append(triple)
        index = relative_position_index(window)
        self.groups = nn.ModuleList(_group(alike, window=window, index=index) for alike in members.values())
        self.sizes = [len(alike) * _num_tokens(alike[0]) for alike in members.values()]
        order = torch.cat(
            [_flat([a.tokens for a in one], grid) for alike in members.values() for one in alike]
        )
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)


def _num_tokens(one: tuple[AxisWindow, ...]) -> int:
    return math.prod(len(axis.tokens) for axis in one)


def _group(
    alike: list[tuple[AxisWindow, ...]], *, window: tuple[int, int, int], index: Int[Tensor, "l l"]
) -> WindowGroup:
    one = alike[0]
    positions = _flat([axis.positions for axis in one], window)
    everywhere = torch.arange(math.prod(window))
    # Selecting by a mask would need values, and the cost model builds models that have none.
    padding = torch.isin(everywhere, positions).int().argsort(stable=True)[: len(everywhere) - len(positions)]
    # Regions are numbered 0..2 along each axis, so base 3 keeps the combinations apart.
    regions = _flat([axis.regions for axis in one], (3, 3, 3))
    return WindowGroup(positions, padding, regions=regions, index=index, num_windows=len(alike))


def _flat(coordinates: list[tuple[int, ...]], shape: tuple[int, int, int]) -> Int[Tensor, " l"]:
    """Return row-major indices of the product of per-axis coordinates."""
    grid = torch.cartesian_prod(*(torch.tensor(axis) for axis in coordinates))
    return (grid * torch.tensor([shape[1] * shape[2], shape[2], 1])).sum(-1)
