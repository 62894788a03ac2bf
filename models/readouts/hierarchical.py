"""Dynamic-V1FM's readout: neurons read alone and in groups of neighbors, and the readings are fused."""

from typing import Literal

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.encoder import Readout, SessionSpec
from models.positions import GaussianPositions
from models.readouts.gaussian import initial_weights
from models.resize import nearest
from models.sampling import sample_and_dot

Fusion = Literal["mean", "adaptive"]

PUBLISHED_LEVELS = (2, 4, 8, 16)
"""Coarse levels of the released model, all of which it builds whatever subset it uses."""

REFINE_WIDTH = 16
"""Hidden units per unit of the level: 32, 64, 128 and 256 for the published levels."""


class Level(nn.Module):
    """Pseudo-neurons, each of which stands for ``factor`` neighboring neurons (by index).

    A pseudo-neuron reads at the position of one of its neurons. What it reads goes through a net of one
    number, which all pseudo-neurons share, before it is handed out to the neurons: the net commutes with
    that.

    Args:
        factor: neurons per pseudo-neuron; where a session has fewer neurons, one pseudo-neuron is left.
        num_neurons: neurons of the session.
        in_channels: channels of the core's features.
        weight_spread: standard deviation of the weights at the start, see ``initial_weights``.
    """

    sources: Int[Tensor, " pseudo"]
    members: Int[Tensor, " n"]

    def __init__(
        self, factor: int, num_neurons: int, *, in_channels: int, weight_spread: float = 0.0
    ) -> None:
        super().__init__()
        count = max(1, num_neurons // factor)
        self.weights = nn.Parameter(initial_weights(in_channels, count, spread=weight_spread))
        width = REFINE_WIDTH * factor
        self.refine = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, 1, bias=False))
        self.register_buffer("sources", nearest(num_neurons, count), persistent=False)
        self.register_buffer("members", nearest(count, num_neurons), persistent=False)

    def forward(self, read: Float[Tensor, "f pseudo"]) -> Float[Tensor, "f n"]:
        """Refine what the pseudo-neurons read and hand it out to their neurons."""
        refined: Tensor = rearrange(
            self.refine(rearrange(read, "f pseudo -> f pseudo 1")), "f pseudo 1 -> f pseudo"
        )
        if refined.shape[1] == 1:
            # torch's compiler has no gradient for an index into a single entry.
            refined = refined.expand(-1, len(self.members))
        else:
            refined = refined.index_select(1, self.members)
        return refined


class MeanFusion(nn.Module):
    """Every level counts alike."""

    def forward(self, levels: Float[Tensor, "k b t n"]) -> Float[Tensor, "b t n"]:
        """Fuse the levels."""
        return levels.mean(dim=0)


class AdaptiveFusion(nn.Module):
    """Weigh the levels, per clip, by each level's mean over frames and neurons; weights need not sum to 1."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_levels, num_levels), nn.ReLU(), nn.Linear(num_levels, num_levels), nn.Sigmoid()
        )

    def forward(self, levels: Float[Tensor, "k b t n"]) -> Float[Tensor, "b t n"]:
        """Fuse the levels."""
        weights = self.layers(reduce(levels, "k b t n -> b k", "mean"))
        fused: Tensor = einsum(weights, levels, "b k, k b t n -> b t n")
        return fused


class HierarchicalReadout(Readout):
    """A Gaussian readout with coarser levels; without any, it is the plain one.

    Args:
        spec: the session.
        in_channels: channels of the core's features.
        levels: neurons per pseudo-neuron of each coarse level.
        fusion: how the levels become one prediction.
        unused_levels: also build what the released code builds for levels that are not in use.
        hidden: width of the position network.
        init_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the weights at the start, see ``initial_weights``.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.2; nearest rule, nets and fusion as in the released code.
    """

    def __init__(
        self,
        spec: SessionSpec,
        in_channels: int,
        *,
        levels: tuple[int, ...],
        fusion: Fusion,
        unused_levels: bool = False,
        hidden: int = 32,
        init_sigma: float = 0.2,
        weight_spread: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions = GaussianPositions(spec, hidden, init_sigma)
        self.weights = nn.Parameter(initial_weights(in_channels, spec.num_neurons, spread=weight_spread))
        self.bias = nn.Parameter(spec.mean_response.detach().float().clone())
        self.levels = _levels(levels, spec.num_neurons, in_channels, weight_spread=weight_spread)
        self.fusion = AdaptiveFusion(len(levels) + 1) if fusion == "adaptive" else MeanFusion()
        if unused_levels:
            self.unused = _unused(levels, spec.num_neurons, in_channels=in_channels, fusion=fusion)

    def forward(
        self,
        features: Float[Tensor, "b d t h w"],
        *,
        behavior: Float[Tensor, "b 2 t"],  # noqa: ARG002 - every readout is offered it
        pupil: Float[Tensor, "b 2 t"],  # noqa: ARG002 - reaches this readout as the shift
        shift: Float[Tensor, "b t 2"] | None,
    ) -> Float[Tensor, "b n t"]:
        """Read all levels off every frame's features and fuse them."""
        num_clips, _, num_frames, _, _ = features.shape
        positions = self.positions(num_clips * num_frames)
        if shift is not None:
            positions = positions + rearrange(shift, "b t xy -> (b t) 1 xy")
        finest, *coarse = self._read(rearrange(features, "b d t h w -> (b t) d h w"), positions)
        levels = [finest, *(level(read) for level, read in zip(self.levels, coarse, strict=True))]
        stacked = rearrange(levels, "k (b t) n -> k b t n", b=num_clips)
        fused: Tensor = rearrange(self.fusion(stacked) + self.bias, "b t n -> b n t")
        return fused

    def _read(
        self, frames: Float[Tensor, "f d h w"], positions: Float[Tensor, "f n 2"]
    ) -> tuple[Float[Tensor, "f _"], ...]:
        """Read neurons and pseudo-neurons of all levels in one go: they share their positions."""
        levels = [level for level in self.levels if isinstance(level, Level)]
        positions = torch.cat(
            [positions, *(positions.index_select(1, level.sources) for level in levels)], dim=1
        )
        weights = torch.cat([self.weights, *(level.weights for level in levels)], dim=1)
        counts = [self.weights.shape[1], *(level.weights.shape[1] for level in levels)]
        read: tuple[Tensor, ...] = sample_and_dot(frames, positions, weights).split(counts, dim=1)
        return read


def _levels(
    levels: tuple[int, ...], num_neurons: int, in_channels: int, *, weight_spread: float = 0.0
) -> nn.ModuleList:
    return nn.ModuleList(
        Level(factor, num_neurons, in_channels=in_channels, weight_spread=weight_spread) for factor in levels
    )


def _unused(levels: tuple[int, ...], num_neurons: int, *, in_channels: int, fusion: Fusion) -> nn.ModuleList:
    """Build the published levels that are not in use, and the fusion nets for other numbers of levels."""
    left_out = tuple(factor for factor in PUBLISHED_LEVELS if factor not in levels)
    modules = _levels(left_out, num_neurons, in_channels)
    if fusion == "adaptive":
        sizes = range(2, len(PUBLISHED_LEVELS) + 2)
        modules.extend(AdaptiveFusion(size) for size in sizes if size != len(levels) + 1)
    return modules
