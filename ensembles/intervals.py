"""Intervals of scores over clips: the jackknife with Student's t."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate, and what it could be.

    Attributes:
        value: on all clips.
        error: standard error by the jackknife over clips; NaN for fewer than two.
        num_clips: units of the jackknife.
    """

    value: float
    error: float
    num_clips: int

    @property
    def low(self) -> float:
        """Lower end of the two-sided 95 % t interval."""
        return self.value - self._width

    @property
    def high(self) -> float:
        """Upper end of the two-sided 95 % t interval."""
        return self.value + self._width

    @property
    def lower_bound(self) -> float:
        """One-sided 95 % lower bound; minus infinity for fewer than two clips."""
        if self.num_clips < 2:
            return -math.inf
        return self.value - t_quantile(CONFIDENCE, self.num_clips - 1) * self.error

    @property
    def _width(self) -> float:
        if self.num_clips < 2:
            return math.nan
        return t_quantile((1 + CONFIDENCE) / 2, self.num_clips - 1) * self.error


def leave_one_out_sets(num_clips: int) -> Int[np.ndarray, "q clips"]:
    """Return how often each clip counts: all of them, then all but each."""
    return np.concatenate([np.ones((1, num_clips), np.int64), 1 - np.eye(num_clips, dtype=np.int64)])


def jackknife(values: Float64[np.ndarray, " q"]) -> Interval:
    """Make an interval of a statistic of all clips and of all but each (``leave_one_out_sets``).

    Source:
        Efron & Stein 1981, Annals of Statistics 9(3), eq. 1.2.
    """
    without = values[1:]
    num_clips = len(without)
    if num_clips < 2:
        return Interval(value=float(values[0]), error=math.nan, num_clips=num_clips)
    error = math.sqrt((num_clips - 1) / num_clips * float(((without - without.mean()) ** 2).sum()))
    return Interval(value=float(values[0]), error=error, num_clips=num_clips)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the value that Student's t stays below with a probability of at least one half.

    Source:
        Abramowitz & Stegun 1964, eqs. 26.7.3 and 26.7.4: the distribution for whole degrees of freedom.
    """
    if not (0.5 <= probability < 1 and degrees >= 1):
        raise ValueError(
            f"probability is {probability} with {degrees} degrees, but must be 0.5 to 1 with 1 or more"
        )
    low, high = 0.0, 1.0
    while _t_distribution(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < probability else (low, middle)
    return high


def _t_distribution(value: float, degrees: int) -> float:
    angle = math.atan(value / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for power in range(2 + odd, degrees, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
