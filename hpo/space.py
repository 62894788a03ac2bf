"""Search spaces: a published run, and a function that asks for what may differ from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.names import flatten, nearest, parse, with_values
from training.spec import RunSpec

Value = bool | int | float | str
Choice = Value | tuple[int, ...]


class ConflictError(ValueError):
    """Values that lie inside the space, each by itself, and cannot work together."""


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

    Args:
        optuna_trial: answers.
        bounds: what the user has fixed.
        base: values of the run that the space lies around, by dotted name; ``multiple`` needs them.

    Attributes:
        values: what was answered so far, pinned values included; what is logged is what is used.
    """

    def __init__(
        self,
        optuna_trial: Suggestions,
        bounds: Bounds | None = None,
        *,
        base: Mapping[str, Any] | None = None,
    ) -> None:
        self._trial = optuna_trial
        self._bounds = bounds or Bounds()
        self._base = base or {}
        self.values: dict[str, Value] = {}

    def whole(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False, limit: int | None = None
    ) -> int:
        """Ask for a whole number: low, low + step, ... high.

        Args:
            name: dotted name.
            low: lowest value.
            high: highest value that any run of the space can have.
            step: from one value to the next.
            log: draw evenly over orders of magnitude.
            limit: highest value of this run, where it follows from an earlier answer.

        Raises:
            ConflictError: what the user has fixed lies above ``limit``.
            ValueError: it lies outside of the space.
        """
        top = high if limit is None else min(high, limit)
        if name in self._bounds.pinned:
            pinned: int = parse(self._bounds.pinned[name], int, name=name)
            if not low <= pinned <= high or (pinned - low) % step:
                steps = f" in steps of {step}" if step > 1 else ""
                raise ValueError(f"{name} is {pinned}, but the space goes from {low} to {high}{steps}")
            if pinned > top:
                raise ConflictError(f"{name} is {pinned}, but must be at most {top} in this run")
            self.values[name] = pinned
            return pinned
        low_float, high_float = self._narrow(name, low, high)
        first = low + -(-(int(low_float) - low) // step) * step
        last = first + (int(high_float) - first) // step * step
        if first > last:
            raise ValueError(f"{name} is narrowed to nothing between {low_float:g} and {high_float:g}")
        if first > top:
            raise ConflictError(f"{name} is at least {first}, but must be at most {top} in this run")
        value = self._trial.suggest_int(name, first, min(last, top), step=step, log=log)
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

    def choice(self, name: str, choices: Sequence[Choice]) -> Value:
        """Ask for one of several values. Several numbers in one are asked for, and answered, as text.

        Raises:
            ValueError: a pinned value is not among them, or the name is narrowed (choices have no order).
        """
        known = [plain(choice) for choice in choices]
        if name in self._bounds.narrowed:
            raise ValueError(f"{name} cannot be narrowed, but can be pinned to one of {_listed(known)}")
        if name in self._bounds.pinned:
            self.values[name] = _pinned_choice(name, self._bounds.pinned[name], known)
        else:
            self.values[name] = self._trial.suggest_categorical(name, known)
        return self.values[name]

    def multiple(self, name: str, factors: Sequence[float], *, step: int = 1) -> Value:
        """Ask for the base run's own numbers, all times one factor: the width of a model as a whole.

        Args:
            name: dotted name of a field with several numbers.
            factors: what they are multiplied with.
            step: results are rounded to multiples of this, and are no less.

        Raises:
            ValueError: a pinned value is not among the results.
        """
        numbers: tuple[int, ...] = self._base[name]
        results = [
            tuple(max(round(number * factor / step), 1) * step for number in numbers) for factor in factors
        ]
        return self.choice(name, list(dict.fromkeys(results)))

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


def plain(value: Any) -> Any:
    """Return a value as a study stores it: several numbers as text, ``2,4,8``; none of them as ``()``."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "()"
    return value


def _pinned_choice(name: str, pinned: Any, choices: Sequence[Value]) -> Value:
    wanted = str(plain(pinned))
    for choice in choices:
        if _bare(str(choice)) == _bare(wanted) or _same_number(choice, wanted):
            return choice
    raise ValueError(f"{name} is {wanted!r}{nearest(wanted, map(str, choices))}")


def _bare(text: str) -> str:
    return text.replace(" ", "").strip("()[]")


def _same_number(choice: Value, text: str) -> bool:
    if isinstance(choice, (bool, str)):
        return False
    try:
        return float(text) == choice
    except ValueError:
        return False


def _listed(choices: Sequence[Value]) -> str:
    return ", ".join(map(str, choices))


class Known:
    """Answers with known values, and remembers what was asked: the ranges of a space around a run.

    Args:
        values: answer by dotted name.

    Attributes:
        ranges: what was asked for, in words, by dotted name.
        outside: names whose known value is not in the range; it is answered all the same.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.ranges: dict[str, str] = {}
        self.outside: set[str] = set()

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return the known whole number."""
        self.ranges[name] = f"{low} to {high}" + (f" step {step}" if step > 1 else "") + " log" * log
        value = int(self._values[name])
        self._note(name, low <= value <= high and (value - low) % step == 0)
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the known number."""
        self.ranges[name] = f"{low:g} to {high:g}" + " log" * log
        value = float(self._values[name])
        self._note(name, low <= value <= high)
        return value

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return the known choice."""
        self.ranges[name] = _listed(choices)
        value = plain(self._values[name])
        self._note(name, value in choices)
        return value

    def _note(self, name: str, inside: bool) -> None:
        if not inside:
            self.outside.add(name)


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
        ask = Ask(optuna_trial, bounds, base=flatten(self.base))
        self.suggest(ask)
        return with_values(self.base, ask.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePlan:
    """A space around a run, within what the user has fixed.

    Attributes:
        space: what is searched.
        published: the run's own values of what is searched, where they lie inside the (narrowed) ranges.
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
    ask = Ask(known, base=flatten(base))
    suggest(ask)
    for key in bounds.narrowed:
        if key not in ask.values:
            raise ValueError(f"hyperparameter is {key!r}{nearest(key, ask.values)}")
    base = with_values(base, {key: value for key, value in bounds.pinned.items() if key not in ask.values})
    space = SearchSpace(name=name, base=base, suggest=suggest)
    try:
        # Refuses what lies outside.
        suggest(Ask(Known(flatten(base)), bounds, base=flatten(base)))
    except ConflictError:
        # What is fixed fits into the space, but not to this run's other values.
        return SpacePlan(space=space, published={}, ranges=known.ranges)
    published = {
        key: value
        for key, value in ask.values.items()
        if key not in bounds.pinned
        and key not in known.outside
        and _is_inside(value, bounds.narrowed.get(key))
    }
    return SpacePlan(space=space, published=published, ranges=known.ranges)


def _is_inside(value: Any, narrowed: tuple[float, float] | None) -> bool:
    return narrowed is None or bool(narrowed[0] <= value <= narrowed[1])
