"""Keep what only depends on parameters while they do not change."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Kept = TypeVar("Kept")


class EvalCache(nn.Module):
    """What is computed from parameters, kept while no gradients are asked for and no parameter changes.

    Every in-place change of a parameter (optimizer, averaging, ``load_state_dict``) raises its version
    and every exchange (``.to``, ``assign=True``) its address; both make the kept result void, and so does
    ``train()``. Copies and pickles start empty. A module only to hear of ``train()``: it has no state.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[list[tuple[Tensor, int]], Any] | None = None

    def get(self, parameters: Sequence[Tensor], compute: Callable[[], Kept]) -> Kept:
        """Return ``compute()``, which may depend on nothing but ``parameters``."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if any(parameter.is_inference() for parameter in parameters):
            return compute()  # has no version
        if self._kept is None or not _unchanged(self._kept[0], parameters):
            # A detached alias keeps the memory alive, so that its address cannot come back as another's.
            key = [(parameter.detach(), parameter._version) for parameter in parameters]
            self._kept = (key, compute())
        kept: Kept = self._kept[1]
        return kept

    def train(self, mode: bool = True) -> "EvalCache":
        """Forget the tensor and set the mode."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _unchanged(key: Sequence[tuple[Tensor, int]], parameters: Sequence[Tensor]) -> bool:
    return all(
        alias.data_ptr() == parameter.data_ptr() and version == parameter._version
        for (alias, version), parameter in zip(key, parameters, strict=True)
    )
