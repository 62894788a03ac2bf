"""An exponential moving average of a module's parameters and buffers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragingError(ValueError):
    """An average that does not belong to the module; the message names what differs."""


class MovingAverage:
    """Keep ``average = decay * average + (1 - decay) * current`` of everything in a module.

    The average starts from the module's values at construction and follows from the first step on. Buffers
    that are not floating-point (counters) are copied.

    Args:
        module: whose parameters and buffers are averaged; its tensors must stay the same objects.
        decay: share of the old average kept in each step.

    Source:
        DwiseNeuro's released code: decay 0.999 from the first step, buffers included.
    """

    def __init__(self, module: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, but must be at least 0 and below 1")
        self.decay = decay
        self._current = _tensors(module)
        self._average = {name: tensor.detach().clone() for name, tensor in self._current.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the module; call after each optimizer step."""
        self._require_not_swapped("updated")
        averaged, copied = _split(self._current)
        if averaged:
            torch._foreach_lerp_(
                [self._average[name] for name in averaged],
                [self._current[name].detach() for name in averaged],
                1 - self.decay,
            )
        for name in copied:
            self._average[name].copy_(self._current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module, and its own values back afterwards."""
        self._require_not_swapped("applied")
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by the names of the module's parameters and buffers; tensors are shared."""
        self._require_not_swapped("saved")
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Raises:
            AveragingError: a name is missing or unknown, or a shape differs.
        """
        self._require_not_swapped("loaded")
        for name in sorted(set(state) ^ set(self._average)):
            owner = "the module" if name in self._average else "the saved average"
            raise AveragingError(f"{name} is only in {owner}, but must be in both")
        for name, tensor in state.items():
            if tensor.shape != self._average[name].shape:
                raise AveragingError(
                    f"{name} is {tuple(tensor.shape)} in the saved average, "
                    f"but must be {tuple(self._average[name].shape)}"
                )
            self._average[name].copy_(tensor)

    @torch.no_grad()
    def _swap(self) -> None:
        # In place and with a version bump, so that what was cached from a parameter becomes void.
        for name, tensor in self._current.items():
            kept = tensor.detach().clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(kept)
        self._swapped = not self._swapped

    def _require_not_swapped(self, action: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"the average cannot be {action} while it is in the module; leave applied() first"
            )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _split(tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    averaged = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    return averaged, [name for name in tensors if name not in set(averaged)]
