"""One search: everything in it is real but the objective, which is a formula."""

import heapq
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from benchmarks.searching.methods import Method
from benchmarks.searching.surfaces import BEST, MAX_EPOCHS, NOISE, Crossing, Surface
from hpo.driver import Driver, Limits
from hpo.pruning import PruningConfig
from hpo.space import Bounds, plan_space
from hpo.study import Study
from training.names import flatten
from training.recipes import recipe
from training.results import EpochReport, Outcome, RunResult
from training.spec import RunSpec

# An epoch of most runs takes between half and twice as long as the median one's.
_SPREAD_OF_SPEED = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What one search did.

    Attributes:
        runs: that were started.
        finished: epochs spent so far, observed and true score of every finished run.
        trials: as the study stores them.
    """

    runs: int
    finished: tuple[tuple[int, float, float], ...]
    trials: tuple[FrozenTrial, ...]

    def regret(self, epochs: int) -> float:
        """Return the regret after so many epochs."""
        known = [(observed, true) for spent, observed, true in self.finished if spent <= epochs]
        return BEST - max(known)[1] if known else BEST


def search(
    method: Method,
    crossing: Crossing,
    seed: int,
    *,
    budget: int,
    strides_matter: bool = False,
    at_a_time: int = 1,
) -> Searched:
    """Make one search.

    Args:
        method: how.
        crossing: of the surface's curves.
        seed: of the surface, the noise and the proposals.
        budget: epochs of all runs together.
        strides_matter: make strides and patch sizes the most important hyperparameters.
        at_a_time: runs that train side by side, each at its own speed.
    """
    surface = Surface(seed, crossing, strides_matter=strides_matter)
    base = replace(recipe("vivit"), epochs=MAX_EPOCHS)
    plan = plan_space("vivit", method.suggest, base, Bounds())
    pruning = PruningConfig(
        pruner=method.pruner,
        min_epochs=method.min_epochs,
        max_epochs=MAX_EPOCHS,
        reduction=method.reduction,
    )
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            Path(folder) / "study",
            plan.space,
            bounds=Bounds(),
            pruning=pruning,
            seed=seed,
            identity={},
            sampler=method.sampler,
        )
        try:
            driver = Driver(study, Limits(runs=10**6))
            finished = _drive(driver, surface, seed=seed, budget=budget, at_a_time=at_a_time)
            trials = tuple(study.trials())
        finally:
            study.close()
    return Searched(runs=len(trials), finished=tuple(finished), trials=trials)


class _Run:
    """A run in training: the curve of its point, noise, and a speed of its own."""

    def __init__(self, number: int, spec: RunSpec, surface: Surface, *, seed: int) -> None:
        self.number, self.spec, self.epoch = number, spec, 0
        values: Mapping[str, Any] = flatten(spec)
        noise = np.random.default_rng([3, seed, number]).normal(scale=NOISE, size=MAX_EPOCHS)
        self.observed, self.true = surface.curve(values) + noise, surface.final(values)
        speed = np.random.default_rng([4, seed, number])
        self.epoch_seconds = float(speed.lognormal(sigma=_SPREAD_OF_SPEED))

    @property
    def score(self) -> float:
        """The score of the newest epoch."""
        return float(self.observed[self.epoch - 1])

    def report(self) -> EpochReport:
        """Return the newest epoch."""
        return EpochReport(
            epoch=self.epoch,
            loss=1.0,
            score=self.score,
            score_by_session={},
            best_score=self.score,
            rate=0.1,
            seconds=0.0,
            clips_per_second=1.0,
            peak_memory_bytes=1,
        )

    def result(self) -> RunResult:
        """Return how it has finished."""
        return RunResult(
            run_id=str(self.number),
            spec=self.spec,
            outcome=Outcome.FINISHED,
            score=self.score,
            score_by_session={},
            epochs=self.epoch,
            seconds=0.0,
            checkpoint=None,
            error=None,
        )


def _drive(
    driver: Driver, surface: Surface, *, seed: int, budget: int, at_a_time: int
) -> list[tuple[int, float, float]]:
    """Let runs train in simulated time until the epochs are used up; return the finished ones."""
    runs: dict[int, _Run] = {}
    ends: list[tuple[float, int]] = []
    finished: list[tuple[int, float, float]] = []
    now, spent = 0.0, 0
    while spent < budget:
        while len(runs) < at_a_time and (asked := driver.next()) is not None:
            assert asked.spec is not None
            run = _Run(asked.number, asked.spec, surface, seed=seed)
            runs[asked.number] = run
            heapq.heappush(ends, (now + run.epoch_seconds, asked.number))
        now, number = heapq.heappop(ends)
        run = runs[number]
        run.epoch, spent = run.epoch + 1, spent + 1
        goes_on = driver.epoch(number, run.report())
        if goes_on and run.epoch < MAX_EPOCHS:
            heapq.heappush(ends, (now + run.epoch_seconds, number))
            continue
        if goes_on:
            finished.append((spent, run.score, run.true))
            driver.ended(number, run.result())
        del runs[number]
    return finished
