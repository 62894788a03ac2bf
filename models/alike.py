"""Loops whose passes all do the same, which a prediction of their cost need not walk through one by one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch

Pass = TypeVar("Pass")


@dataclass(slots=True)
class Shortening:
    """How often the work that is being done counts.

    Attributes:
        times: passes that the one under way stands for.
    """

    times: float = 1.0


_shortening: ContextVar[Shortening | None] = ContextVar("shortening", default=None)


@contextmanager
def shortened_loops() -> Iterator[Shortening]:
    """Make ``alike`` yield the first pass only, and say meanwhile for how many it stands.

    What the loops compute is wrong then: for tensors without contents.
    """
    shortening = Shortening()
    token = _shortening.set(shortening)
    try:
        yield shortening
    finally:
        _shortening.reset(token)


def alike(passes: Sequence[Pass], *, times: float | None = None) -> Iterable[Pass]:
    """Return the passes of a loop that all do the same and leave no tensor behind, not even in a variable.

    Args:
        passes: what the loop goes through.
        times: how much work all passes are, in units of the first one, where the last is smaller.
    """
    # The compiler does not know context variables, and a compiled loop is never a prediction.
    if torch.compiler.is_compiling():
        return passes
    shortening = _shortening.get()
    if shortening is None or len(passes) < 2:
        return passes
    return _first(passes, shortening, times=len(passes) if times is None else times)


def _first(passes: Sequence[Pass], shortening: Shortening, *, times: float) -> Iterator[Pass]:
    before = shortening.times
    shortening.times = before * times
    yield passes[0]
    shortening.times = before
