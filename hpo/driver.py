"""The driver of a search in one process: asks the study, trains, reports every epoch, tells how it ended."""

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from data.recording import Recording
from hpo.space import Ask, Bounds, SearchSpace
from hpo.study import Asked, Study
from training.material import SelectOn
from training.names import flatten, nearest, with_values
from training.reporter import Reporter, run_tags
from training.results import EpochReport, Outcome, RunResult
from training.run import run
from training.spec import RunSpec
from training.tracking import Tracker, default_tracking_uri, prepare_store

KEPT_RUNS = 5
"""So many of the best runs keep their checkpoints."""

Objective = Callable[[RunSpec, Path, Callable[[EpochReport], bool]], RunResult]
"""Trains a run in a folder, telling every epoch and stopping when told to."""


def plan_space(
    name: str, suggest: Callable[[Ask], None], base: RunSpec, bounds: Bounds
) -> tuple[SearchSpace, dict[str, Any]]:
    """Return the space around a run, and that run's own values of what is searched.

    What is pinned but not in the space changes the base run.

    Raises:
        ValueError: a pinned or narrowed name does not exist, or a value lies outside the space.
    """
    ask = Ask(optuna.trial.FixedTrial(flatten(base)))
    suggest(ask)
    outside = {key: value for key, value in bounds.pinned.items() if key not in ask.values}
    for key in bounds.narrowed:
        if key not in ask.values:
            raise ValueError(f"hyperparameter is {key!r}{nearest(key, ask.values)}")
    base = with_values(base, outside)
    space = SearchSpace(name=name, base=base, suggest=suggest)
    published = {key: value for key, value in ask.values.items() if key not in bounds.pinned}
    with warnings.catch_warnings():
        # That the recipe's own value lies outside of a narrowed range is no reason to warn.
        warnings.simplefilter("ignore")
        suggest(Ask(optuna.trial.FixedTrial(flatten(base)), bounds))
    published = {key: value for key, value in published.items() if _is_inside(key, value, bounds)}
    return space, published


def _is_inside(name: str, value: Any, bounds: Bounds) -> bool:
    low, high = bounds.narrowed.get(name, (value, value))
    return bool(low <= value <= high)


class Driver:
    """Runs a study, one run after the other.

    Args:
        study: what to drive.
        recordings: sessions to train on.
        console: where to say what happens, a line for each event.
        select_on: what scores look at.
        root: folder of runs; holds the MLflow store.
        objective: trains a run; a test passes a faster one.
        tracked: record runs in MLflow.
    """

    def __init__(
        self,
        study: Study,
        recordings: Sequence[Recording],
        console: Console,
        *,
        select_on: SelectOn = "holdout",
        root: Path,
        objective: Objective | None = None,
        tracked: bool = True,
    ) -> None:
        self.study, self._recordings, self._console = study, recordings, console
        self._select_on, self._root, self._tracked = select_on, root, tracked
        self._objective = objective or self._train
        if tracked:
            self._uri = default_tracking_uri(root)
            prepare_store(self._uri, experiment=study.space.name)

    def run(self, *, total: int, minutes: float | None = None) -> None:
        """Make runs until there are ``total`` or the time is up; what was interrupted goes on first."""
        deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            asked = self.study.ask(total=total)
            if asked is None:
                return
            result = self._make(asked)
            self.study.tell(asked.number, result)
            self._say_ended(asked.number, result)
            self._remove_what_cannot_matter()
        self._console.print("the time budget is used up; the same command goes on", highlight=False)

    def _make(self, asked: Asked) -> RunResult:
        folder = self._folder(asked.number)
        if asked.spec is None:
            return RunResult(
                run_id=folder.name,
                spec=self.study.space.base,
                outcome=Outcome.INFEASIBLE,
                score=None,
                score_by_session={},
                epochs=0,
                seconds=0.0,
                checkpoint=None,
                error=asked.reason,
            )
        reporter = self._reporter(asked.spec, folder)

        def on_epoch(report: EpochReport) -> bool:
            if reporter is not None:
                reporter.epoch(report)
            return self.study.report(asked.number, report)

        result = self._objective(asked.spec, folder, on_epoch)
        if reporter is not None:
            reporter.finish(result)
        return result

    def _train(self, spec: RunSpec, folder: Path, on_epoch: Callable[[EpochReport], bool]) -> RunResult:
        return run(spec, self._recordings, folder, on_epoch=on_epoch, select_on=self._select_on)

    def _reporter(self, spec: RunSpec, folder: Path) -> Reporter | None:
        if not self._tracked:
            return None
        run_id = f"{self.study.folder.name}-{folder.name}"
        tracker = Tracker(folder, uri=self._uri, experiment=self.study.space.name, run_id=run_id)
        reporter = Reporter(tracker, folder)
        reporter.start(spec, tags=run_tags(spec, self._recordings) | {"study": self.study.folder.name})
        return reporter

    def _folder(self, number: int) -> Path:
        return self.study.folder / "runs" / f"{number:04d}"

    def _say_ended(self, number: int, result: RunResult) -> None:
        best = self.study.best()
        score = "" if result.score is None else f"  correlation {result.score:.4f}"
        reason = "" if result.error is None else f"  {result.error}"
        leader = "" if best is None else f"  (best {best.values[0]:.4f}, run {best.number})"
        self._console.print(
            f"run {number:>3}  {result.outcome:<10} {result.epochs} epochs  {result.seconds:5.1f} s"
            f"{score}{leader}{reason}",
            highlight=False,
        )

    def _remove_what_cannot_matter(self) -> None:
        """Keep the checkpoints of the best finished runs; the others cannot be members or winners."""
        finished = [trial for trial in self.study.trials() if trial.state.is_finished()]
        # A pruned run has a value, too: its last one.
        scored = sorted(
            (trial for trial in finished if trial.state is TrialState.COMPLETE),
            key=lambda trial: -trial.values[0],
        )
        kept = {trial.number for trial in scored[:KEPT_RUNS]}
        for trial in finished:
            checkpoints = self._folder(trial.number) / "checkpoints"
            doomed = [] if trial.number not in kept else list(checkpoints.glob("state-*"))
            for folder in [checkpoints] if trial.number not in kept else doomed:
                shutil.rmtree(folder, ignore_errors=True)
