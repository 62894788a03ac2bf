"""Runs that a study starts with: the published values, and the best of another study."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.space import Bounds, Suggestions
from hpo.study import Space, Study, made_with, ranked, read_trials
from training.names import flatten
from training.spec import from_plain

TAKEN = 5
"""So many of the best runs of another study are run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """What was taken from another study.

    Attributes:
        taken: numbers of the runs that were enqueued.
        refused: why each of the others was not.
    """

    taken: tuple[int, ...]
    refused: tuple[str, ...]


def enqueue_best(study: Study, source: Path, *, count: int = TAKEN) -> WarmStart:
    """Let a study run the best of another one first; the same again if it is of another scale.

    Args:
        study: that is searched.
        source: folder of the other study.
        count: so many of its best runs.

    Raises:
        StudyError: there is no such study.
    """
    taken, refused = [], []
    for trial in ranked(read_trials(source))[:count]:
        try:
            values = values_within(study.space, study.bounds, trial)
        except ValueError as error:
            refused.append(f"run {trial.number}: {error}")
            continue
        study.enqueue(values)
        taken.append(trial.number)
    return WarmStart(taken=tuple(taken), refused=tuple(refused))


def values_within(space: Space, bounds: Bounds, trial: FrozenTrial) -> dict[str, Any]:
    """Return a run's values of what a space asks for.

    Raises:
        ValueError: a value lies outside of the space, or the run is of another family.
    """
    known = flatten(from_plain(made_with(trial)["spec"])) | trial.params
    within = _Within(known)
    space.spec(within, bounds)
    return within.asked


class _Within(Suggestions):
    """Answers with known values and refuses those that lie outside."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.asked: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:  # noqa: ARG002
        """Return a known whole number in [low, high]."""
        value = self._known(name)
        if not low <= value <= high or (value - low) % step:
            raise ValueError(f"{name} is {value}, but the space goes from {low} to {high} in steps of {step}")
        self.asked[name] = value
        return int(value)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        """Return a known number in [low, high]."""
        value = self._known(name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value:g}, but the space goes from {low:g} to {high:g}")
        self.asked[name] = value
        return float(value)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return a known choice."""
        value = self._known(name)
        if value not in choices:
            raise ValueError(f"{name} is {value}, but must be one of {', '.join(map(str, choices))}")
        self.asked[name] = value
        return value

    def _known(self, name: str) -> Any:
        if self._values.get(name) is None:
            raise ValueError(f"{name} is searched here, but that run has none")
        return self._values[name]
