"""Surfaces of known optimum over the ViViT space, with learning curves that cross.

A surface has 21 hyperparameters of very unequal weight, an interaction and categorical steps; curves rise at
a rate that does not depend on the final score (mild crossing) or is lower for better runs (strong crossing);
every epoch's score has noise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hpo.space import Ask, Known
from hpo.spaces import vivit

MAX_EPOCHS = 27
BEST = 0.4
NOISE = 0.006
Crossing = Literal["mild", "strong"]
CROSSINGS: tuple[Crossing, ...] = get_args(Crossing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The range of one hyperparameter, whatever its patch."""

    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def place(self, value: Any) -> float:
        """Return where a value lies from 0 to 1; choices are numbered."""
        if self.choices:
            return float(self.choices.index(value))
        return (float(value) - self.low) / (self.high - self.low)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value that is not at the edge."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        value = rng.uniform(self.low + 0.1 * (self.high - self.low), self.high - 0.1 * (self.high - self.low))
        return round(value) if self.whole else float(value)


def widest_ranges() -> dict[str, Range]:
    """Return the widest range of every hyperparameter of the ViViT space."""
    ranges: dict[str, Range] = {}

    class Widest(Known):
        def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
            ranges[name] = Range(low=low, high=high, whole=True)
            return high

        def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
            ranges[name] = Range(low=low, high=high)
            return high

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            ranges[name] = Range(choices=tuple(choices))
            return choices[0]

    vivit.suggest(Ask(Widest({})))
    return ranges


class Surface:
    """The true final score and the learning curve of every point of the ViViT space.

    Args:
        seed: of the optimum's place and of what matters how much.
        crossing: how curves cross.
        strides_matter: make patch sizes and strides the four most important hyperparameters.
    """

    def __init__(self, seed: int, crossing: Crossing, *, strides_matter: bool = False) -> None:
        rng = np.random.default_rng([7, seed])
        self._crossing = crossing
        self.ranges = widest_ranges()
        self._names = sorted(self.ranges)
        order = rng.permutation(len(self._names))
        if strides_matter:
            patches = [number for number, name in enumerate(self._names) if "patch_s" in name]
            order = np.array([*rng.permutation(patches), *[place for place in order if place not in patches]])
        self._first, self._second = order[:2]
        self._weights = np.empty(len(order))
        self._weights[order] = 10.0 / (1 + np.arange(len(order))) ** 1.3
        optimum = {name: self.ranges[name].draw(rng) for name in self._names}
        for axis in ("spatial", "temporal"):
            # Of a stride's whole range only what its patch allows can be reached.
            patch = optimum[f"model.{axis}_patch_size"]
            optimum[f"model.{axis}_patch_stride"] = int(rng.integers(1, patch + 1))
        self._center = self._place(optimum)
        self._direction = rng.normal(size=len(order)) / math.sqrt(len(order))

    def final(self, values: Mapping[str, Any]) -> float:
        """Return the true score after all epochs."""
        away = self._away(values)
        cost = float(self._weights @ away**2 + 4.0 * away[self._first] * away[self._second])
        return BEST * math.exp(-cost / 2)

    def curve(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the true score after every epoch."""
        final = self.final(values)
        rate = 5.0 * math.exp(1.5 * float(self._direction @ self._away(values)))
        if self._crossing == "strong":
            rate *= 3.0 * 10.0 ** (-2.2 * final / BEST)
        time = np.arange(1, MAX_EPOCHS + 1) / MAX_EPOCHS
        return final * -np.expm1(-rate * time) / -math.expm1(-rate)

    def _away(self, values: Mapping[str, Any]) -> np.ndarray:
        away = self._place(values) - self._center
        for number, name in enumerate(self._names):
            if self.ranges[name].choices:
                # Every wrong choice is equally far.
                away[number] = 0.5 * (away[number] != 0)
        return away

    def _place(self, values: Mapping[str, Any]) -> np.ndarray:
        return np.array([self.ranges[name].place(values[name]) for name in self._names])
