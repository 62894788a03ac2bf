"""Search spaces: a published run, and a function that asks for what may differ from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.names import flatten, nearest, parse, with_values
from training.spec import RunSpec

Value = bool | int | float | str


class Suggestions(Protocol):
    """The part of an Optuna trial that a space uses; ``optuna.trial.FixedTrial`` fits, too."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return a whole number in [low, high]."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a user has fixed: values that are not searched, and ranges narrower than the space's.

    Attributes:
        pinned: value by dotted name.
        narrowed: lowest and highest value by dotted name.
    """

    pinned: Mapping[str, Any] = field(default_factory=dict)
    narrowed: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Ask:
    """Ask a trial for hyperparameters by dotted name, within what the user has fixed.

    Attributes:
        values: what was answered so far, pinned values included; what is logged is what is used.
    """

    def __init__(self, optuna_trial: Suggestions, bounds: Bounds | None = None) -> None:
        self._trial = optuna_trial
        self._bounds = bounds or Bounds()
        self.values: dict[str, Value] = {}

    def whole(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Ask for a whole number: low, low + step, ... high.

        Raises:
            ValueError: a pinned or narrowed value lies outside.
        """
        if name in self._bounds.pinned:
            pinned: int = parse(self._bounds.pinned[name], int, name=name)
            if not low <= pinned <= high or (pinned - low) % step:
                steps = f" in steps of {step}" if step > 1 else ""
                raise ValueError(f"{name} is {pinned}, but the space goes from {low} to {high}{steps}")
            self.values[name] = pinned
            return pinned
        low_float, high_float = self._narrow(name, low, high)
        first = low + -(-(int(low_float) - low) // step) * step
        last = first + (int(high_float) - first) // step * step
        if first > last:
            raise ValueError(f"{name} is narrowed to nothing between {low_float:g} and {high_float:g}")
        value = self._trial.suggest_int(name, first, last, step=step, log=log)
        self.values[name] = value
        return value

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Ask for a number in [low, high].

        Raises:
            ValueError: a pinned or narrowed value lies outside.
        """
        if name in self._bounds.pinned:
            pinned: float = parse(self._bounds.pinned[name], float, name=name)
            if not low <= pinned <= high:
                raise ValueError(f"{name} is {pinned:g}, but the space goes from {low:g} to {high:g}")
            self.values[name] = pinned
            return pinned
        low, high = self._narrow(name, low, high)
        value = self._trial.suggest_float(name, low, high, log=log)
        self.values[name] = value
        return value

    def choice(self, name: str, choices: tuple[Value, ...]) -> Value:
        """Ask for one of several values.

        Raises:
            ValueError: a pinned value is not among them, or the name is narrowed (choices have no order).
        """
        if name in self._bounds.narrowed:
            raise ValueError(f"{name} cannot be narrowed, but can be pinned to one of {_listed(choices)}")
        if name in self._bounds.pinned:
            for known in choices:
                if str(known) == str(self._bounds.pinned[name]):
                    self.values[name] = known
                    return known
            wrong = str(self._bounds.pinned[name])
            raise ValueError(f"{name} is {wrong!r}{nearest(wrong, map(str, choices))}")
        value: Value = self._trial.suggest_categorical(name, choices)
        self.values[name] = value
        return value

    def _narrow(self, name: str, low: float, high: float) -> tuple[float, float]:
        if name not in self._bounds.narrowed:
            return low, high
        narrow_low, narrow_high = self._bounds.narrowed[name]
        if not low <= narrow_low <= narrow_high <= high:
            raise ValueError(
                f"{name} is narrowed to {narrow_low:g}:{narrow_high:g}, "
                f"but the space goes from {low:g} to {high:g}"
            )
        return narrow_low, narrow_high


def _listed(choices: tuple[Value, ...]) -> str:
    return ", ".join(map(str, choices))


class Known:
    """Answers with known values, and remembers what was asked: the ranges of a space around a run.

    Args:
        values: answer by dotted name.

    Attributes:
        ranges: what was asked for, in words, by dotted name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.ranges: dict[str, str] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return the known whole number."""
        self.ranges[name] = f"{low} to {high}" + (f" step {step}" if step > 1 else "") + " log" * log
        return int(self._values[name])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the known number."""
        self.ranges[name] = f"{low:g} to {high:g}" + " log" * log
        return float(self._values[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return the known choice."""
        self.ranges[name] = _listed(choices)
        return self._values[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What a study searches.

    Attributes:
        name: the model family, as in the registry.
        base: the published run; what the space does not ask for stays as it is here.
        suggest: asks for every hyperparameter of the space. A module-level function, so that it pickles.
    """

    name: str
    base: RunSpec
    suggest: Callable[[Ask], None]

    def spec(self, optuna_trial: Suggestions, bounds: Bounds | None = None) -> RunSpec:
        """Return the run that a trial describes.

        Raises:
            ValueError: the values cannot work together, or a pinned value lies outside the space.
        """
        ask = Ask(optuna_trial, bounds)
        self.suggest(ask)
        return with_values(self.base, ask.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePlan:
    """A space around a run, within what the user has fixed.

    Attributes:
        space: what is searched.
        published: the run's own values of what is searched, where they lie inside of narrowed ranges.
        ranges: the space in words, by dotted name; another version of the space has others.
    """

    space: SearchSpace
    published: Mapping[str, Value]
    ranges: Mapping[str, str]


def plan_space(name: str, suggest: Callable[[Ask], None], base: RunSpec, bounds: Bounds) -> SpacePlan:
    """Return the space around a run. What is pinned but not in the space changes the run itself.

    Raises:
        ValueError: a pinned or narrowed name does not exist, or a value lies outside the space.
    """
    known = Known(flatten(base))
    ask = Ask(known)
    suggest(ask)
    for key in bounds.narrowed:
        if key not in ask.values:
            raise ValueError(f"hyperparameter is {key!r}{nearest(key, ask.values)}")
    base = with_values(base, {key: value for key, value in bounds.pinned.items() if key not in ask.values})
    # Refuses what lies outside.
    suggest(Ask(Known(flatten(base)), bounds))
    published = {
        key: value
        for key, value in ask.values.items()
        if key not in bounds.pinned and _is_inside(value, bounds.narrowed.get(key))
    }
    space = SearchSpace(name=name, base=base, suggest=suggest)
    return SpacePlan(space=space, published=published, ranges=known.ranges)


def _is_inside(value: Any, narrowed: tuple[float, float] | None) -> bool:
    return narrowed is None or bool(narrowed[0] <= value <= narrowed[1])
