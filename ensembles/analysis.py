"""What is found out about an ensemble: plain values that report, manifest and tracking show."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from ensembles.evidence import METRICS, Metric
from ensembles.gate import Choice
from ensembles.intervals import Interval

Protocol = Literal["other_clips", "leave_one_clip_out"]

PROTOCOLS: dict[Protocol, str] = {
    "other_clips": "weights were chosen on other clips than these scores are of",
    "leave_one_clip_out": "each clip is scored with weights that were chosen on the other clips",
}

ByMetric = Mapping[Metric, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemScore:
    """The score of one way to predict.

    Attributes:
        name: best_single, mean, mean_of_all or chosen.
        title: in words.
        overall: over the neurons of all sessions.
        by_session: over the neurons of each session.
        by_stimulus: over the clips of each stimulus class.
    """

    name: str
    title: str
    overall: ByMetric
    by_session: Mapping[str, ByMetric]
    by_stimulus: Mapping[str, ByMetric]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberScore:
    """One member and what it is worth.

    Attributes:
        member: its name.
        group: its architecture.
        weight: its share.
        is_broken: dropped because it is far below the others.
        score: of the member alone.
        contribution: what the ensemble loses without it; None where it has no weight or is all there is.
        cost: of its predictions, in the unit of the analysis.
    """

    member: str
    group: str
    weight: float
    is_broken: bool
    score: ByMetric
    contribution: ByMetric | None
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The mean of so many members.

    Attributes:
        num_members: how many.
        score: average over random subsets.
        low: their tenth percentile.
        high: their ninetieth.
        predicted: from the score of one and the mean correlation r: ``score sqrt(k / (1 + (k - 1) r))``.
    """

    num_members: int
    score: float
    low: float
    high: float
    predicted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPoint:
    """The mean of some members.

    Attributes:
        members: their names.
        cost: of all of them.
        score: on the reported clips, which also picked the members: optimistic.
    """

    members: tuple[str, ...]
    cost: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingShare:
    """The noise ceiling of the reported clips, and the chosen ensemble's share of it.

    Attributes:
        single_trial: best single-trial correlation of anything that knows only the video; mean over neurons.
        to_average: the same for the correlation to average.
        share_single_trial: chosen score over it.
        share_to_average: chosen score over it.
    """

    single_trial: float
    to_average: float
    share_single_trial: float
    share_to_average: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """Everything that is reported of an ensemble.

    Attributes:
        choice: the weights and how they came about.
        protocol: what keeps the scores honest.
        chosen_on: tier of the clips that chose.
        reported_on: tier of the clips of all scores here.
        num_clips: clips of the scores.
        num_neurons: of each session.
        num_masked: pairs of neuron and frame without a response.
        num_constant: neurons that count as 0 in the chosen score.
        systems: best single member, mean, chosen.
        gain: chosen minus mean, paired.
        gain_over_best: chosen minus best single member, paired.
        in_sample: score of the chosen weights on the clips that chose them: optimistic.
        members: in the order of the pool.
        correlation: between the members' predictions, mean over neurons.
        mean_correlation: of different members that are not broken.
        effective_number: uncorrelated members that would be worth as much: ``K / (1 + (K - 1) r)``.
        curve: score against number of members.
        front: means of members that are better than anything cheaper, by cost.
        costs: all other means that were looked at for it.
        cost_unit: of all costs.
        ceiling: None where it cannot be measured.
        ceiling_note: why not.
    """

    choice: Choice
    protocol: Protocol
    chosen_on: str
    reported_on: str
    num_clips: int
    num_neurons: Mapping[str, int]
    num_masked: int
    num_constant: int
    systems: tuple[SystemScore, ...]
    gain: ByMetric
    gain_over_best: ByMetric
    in_sample: Mapping[Metric, float]
    members: tuple[MemberScore, ...]
    correlation: Float64[np.ndarray, "k k"]
    mean_correlation: float
    effective_number: float
    curve: tuple[CurvePoint, ...]
    front: tuple[CostPoint, ...]
    costs: tuple[CostPoint, ...]
    cost_unit: str
    ceiling: CeilingShare | None
    ceiling_note: str

    @property
    def chosen(self) -> SystemScore:
        """The score of the chosen blend."""
        return self.systems[-1]

    def system(self, name: str) -> SystemScore:
        """Return one of the systems by its name."""
        return next(system for system in self.systems if system.name == name)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite become None."""
        gate = self.choice.gate
        return {
            "blend": self.choice.blend,
            "forced": self.choice.forced,
            "protocol": self.protocol,
            "chosen_on": self.chosen_on,
            "reported_on": self.reported_on,
            "num_clips": self.num_clips,
            "num_masked": self.num_masked,
            "num_constant": self.num_constant,
            "gate": None
            if gate is None
            else {"candidate": gate.candidate, "is_open": gate.is_open, "gain": _plain(gate.gain)},
            "broken": [each.member for each in self.choice.broken],
            "scores": {
                system.name: {
                    "overall": _metrics(system.overall),
                    "by_session": {name: _metrics(of) for name, of in system.by_session.items()},
                    "by_stimulus": {name: _metrics(of) for name, of in system.by_stimulus.items()},
                }
                for system in self.systems
            },
            "gain": _metrics(self.gain),
            "gain_over_best": _metrics(self.gain_over_best),
            "in_sample": {metric: _number(self.in_sample[metric]) for metric in METRICS},
            "members": [
                {
                    "member": each.member,
                    "group": each.group,
                    "weight": each.weight,
                    "score": _metrics(each.score),
                    "contribution": None if each.contribution is None else _metrics(each.contribution),
                    "cost": each.cost,
                }
                for each in self.members
            ],
            "curve": [asdict(point) for point in self.curve],
            "front": [asdict(point) | {"members": list(point.members)} for point in self.front],
            "cost_unit": self.cost_unit,
            "mean_correlation": _number(self.mean_correlation),
            "effective_number": _number(self.effective_number),
            "ceiling": None
            if self.ceiling is None
            else {
                "single_trial": self.ceiling.single_trial,
                "to_average": self.ceiling.to_average,
                "share_single_trial": self.ceiling.share_single_trial,
                "share_to_average": self.ceiling.share_to_average,
            },
        }


def _metrics(of: ByMetric) -> dict[str, Any]:
    return {metric: _plain(of[metric]) for metric in METRICS}


def _plain(interval: Interval) -> dict[str, Any]:
    return {
        "value": _number(interval.value),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "num_clips": interval.num_clips,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
