"""The ways to search that are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpo.space import Ask
from hpo.spaces import SPACES, vivit


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to search.

    Attributes:
        sampler: what proposes.
        pruner: what stops.
        min_epochs: before nothing is stopped.
        reduction: one of so many survives a rung.
        suggest: the space.
    """

    sampler: str = "tpe"
    pruner: str = "hyperband"
    min_epochs: int = 3
    reduction: int = 3
    suggest: Callable[[Ask], None] = SPACES["vivit"]["full"]


METHODS = {
    "random": Method(sampler="random", pruner="none"),
    "TPE": Method(pruner="none"),
    "TPE + Hyperband": Method(),
    "TPE + median": Method(pruner="median"),
    "TPE + ASHA": Method(pruner="asha"),
}
SETTINGS = {
    "Hyperband, min 1/27, reduction 3": Method(min_epochs=1),
    "Hyperband, min 1/9, reduction 3": Method(),
    "Hyperband, min 1/3, reduction 3": Method(min_epochs=9),
    "Hyperband, min 1/9, reduction 2": Method(reduction=2),
    "Hyperband, min 1/9, reduction 4": Method(reduction=4),
    "median, min 1/3": Method(pruner="median", min_epochs=9),
    "ASHA, min 1/3": Method(pruner="asha", min_epochs=9),
    "random + Hyperband": Method(sampler="random"),
}


def share_of_patch(ask: Ask) -> None:
    """Ask for strides as shares of their patches, the rest as the space does."""
    _suggest_strides(
        ask, lambda trial, name, top: 1 + min(int(trial.suggest_float(name, 0, 1) * top), top - 1)
    )


def clipped_to_patch(ask: Ask) -> None:
    """Ask for strides over the whole range and cut what is longer than the patch."""
    highest = {"model.spatial_patch_stride": 16, "model.temporal_patch_stride": 50}
    _suggest_strides(ask, lambda trial, name, top: min(int(trial.suggest_int(name, 1, highest[name])), top))


def _suggest_strides(ask: Ask, stride: Callable[[Any, str, int], int]) -> None:
    class Strides(Ask):
        def whole(self, name: str, low: int, high: int, *, limit: int | None = None, **options: Any) -> int:
            if limit is None:
                return super().whole(name, low, high, **options)
            self.values[name] = stride(self._trial, name, limit)
            return int(self.values[name])

    inner = Strides(ask._trial, ask._bounds)
    vivit.suggest(inner)
    ask.values |= inner.values


STRIDES = {
    "dynamic range": Method(pruner="none"),
    "share of the patch": Method(pruner="none", suggest=share_of_patch),
    "whole range, clipped": Method(pruner="none", suggest=clipped_to_patch),
    "dynamic range + Hyperband": Method(),
    "share of the patch + Hyperband": Method(suggest=share_of_patch),
    "whole range, clipped + Hyperband": Method(suggest=clipped_to_patch),
}
