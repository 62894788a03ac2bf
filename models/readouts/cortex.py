"""DwiseNeuro's cortex, shared by all sessions, and its grouped readout of one session."""

import math
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.drop_path import DropPath
from models.encoder import Readout, SessionSpec


def grouped_linear(
    features: Float[Tensor, "b t d"],
    weight: Float[Tensor, "e d_group 1"],
    bias: Float[Tensor, " e"] | None,
    *,
    groups: int,
) -> Float[Tensor, "b t e"]:
    """Apply one matrix per group of channels to every frame, as a grouped convolution of size 1 does."""
    num_clips = len(features)
    rows = rearrange(features, "b t (group d) -> group (b t) d", group=groups)
    matrices = rearrange(weight, "(group e) d 1 -> group d e", group=groups)
    mixed = rearrange(torch.bmm(rows, matrices), "group (b t) e -> b t (group e)", b=num_clips)
    return mixed if bias is None else mixed + bias


def channel_shuffle(features: Float[Tensor, "*rest d"], groups: int) -> Float[Tensor, "*rest d"]:
    """Interleave the groups: channel i of group g goes to place ``i * groups + g``.

    Source:
        Zhang et al. 2018, ShuffleNet, arXiv:1707.01083, section 3.1.
    """
    return rearrange(features, "... (group d) -> ... (d group)", group=groups)


class CortexLayer(nn.Module):
    """Grouped matrix, normalization, SiLU and channel shuffle; the shortcut repeats the channels."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, drop_path: float) -> None:
        super().__init__()
        self.out_channels, self.groups = out_channels, groups
        self.mix = nn.Conv1d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.shortcut_norm = nn.BatchNorm1d(out_channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Transform every frame on its own."""
        mixed = grouped_linear(features, self.mix.weight, None, groups=self.groups)
        main = channel_shuffle(functional.silu(_norm(mixed, self.norm)), self.groups)
        repeats = math.ceil(self.out_channels / features.shape[-1])
        shortcut = features.repeat(1, 1, repeats)[..., : self.out_channels]
        result: Tensor = self.drop_path(main) + _norm(shortcut, self.shortcut_norm)
        return result


class Cortex(nn.Sequential):
    """Layers that widen a frame's feature vector.

    Args:
        channels: widths, the input's first.
        groups: groups of every layer.
        drop_path: rate at which a clip skips a layer's main path.

    Source:
        DwiseNeuro in Turishcheva et al. 2024, arXiv:2407.09100, A.1. The paper says that channels double
        three times; in the released code the first layer takes 256 to 1024.
    """

    def __init__(self, channels: tuple[int, ...], *, groups: int, drop_path: float) -> None:
        super().__init__(
            *(CortexLayer(a, b, groups=groups, drop_path=drop_path) for a, b in pairwise(channels))
        )


class GroupedReadout(Readout):
    """One weight vector per neuron; the first half of the neurons reads the first half of the channels.

    An odd number of neurons is completed by one that is computed and cut off, as in the released code.

    Args:
        spec: the session.
        in_channels: channels of the cortex.
        groups: groups of channels and of neurons.
        dropout: rate for a channel in all frames of a clip.
    """

    def __init__(self, spec: SessionSpec, in_channels: int, *, groups: int = 2, dropout: float = 0.4) -> None:
        super().__init__()
        self.num_neurons, self.groups = spec.num_neurons, groups
        self.dropout = nn.Dropout1d(dropout)
        self.weights = nn.Conv1d(in_channels, groups * math.ceil(spec.num_neurons / groups), 1, groups=groups)

    def forward(
        self,
        features: Float[Tensor, "b d t 1 1"],
        *,
        behavior: Float[Tensor, "b 2 t"],  # noqa: ARG002 - this readout has no use for it
        pupil: Float[Tensor, "b 2 t"],  # noqa: ARG002 - this readout has no use for it
        shift: Float[Tensor, "b t 2"] | None,  # noqa: ARG002 - there is no map to shift on
    ) -> Float[Tensor, "b n t"]:
        """Read each neuron's activity off every frame's features."""
        kept = self.dropout(rearrange(features, "b d t 1 1 -> b d t"))
        read = grouped_linear(
            rearrange(kept, "b d t -> b t d"), self.weights.weight, self.weights.bias, groups=self.groups
        )
        return rearrange(read[..., : self.num_neurons], "b t n -> b n t")


def _norm(features: Float[Tensor, "b t d"], norm: nn.BatchNorm1d) -> Float[Tensor, "b t d"]:
    result: Tensor = norm(rearrange(features, "b t d -> (b t) d"))
    return rearrange(result, "(b t) d -> b t d", b=len(features))
