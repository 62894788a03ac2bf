"""A search with an objective of milliseconds, also as a program that can be killed."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sqlalchemy import event

from hpo.driver import Driver, Limits
from hpo.hanging import HangWatch
from hpo.memory import MemoryWatch, too_many_clips
from hpo.pruning import PruningConfig
from hpo.space import Bounds, plan_space
from hpo.study import Study
from training.recipes import recipe
from training.results import EpochReport, Outcome, RunResult

EPOCHS = 4


def score_of(spec, epoch):
    return 0.3 - abs(spec.optimizer.core_lr - 0.002) * 20 + 0.01 * epoch


def make_report(spec, epoch, score=None):
    score = score_of(spec, epoch) if score is None else score
    return EpochReport(
        epoch=epoch,
        loss=1.0,
        score=score,
        score_by_session={"a": score},
        best_score=score,
        rate=0.1,
        seconds=0.0,
        clips_per_second=1.0,
        peak_memory_bytes=1,
    )


def make_result(spec, folder, outcome, *, epochs, error=None):
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=outcome,
        score=score_of(spec, epochs) if outcome in (Outcome.FINISHED, Outcome.PRUNED) else None,
        score_by_session={},
        epochs=epochs,
        seconds=0.0,
        checkpoint=None,
        error=error,
    )


@dataclass(frozen=True, kw_only=True)
class FastObjective:
    """Every epoch that is trained leaves a line in ``log``; a run goes on after its lines.

    As the real objective, it tells the epochs again that it has trained before.
    """

    log: Path
    seconds: float = 0.0
    outcome: Outcome = Outcome.FINISHED
    epochs: int = EPOCHS

    def __call__(self, spec, folder, on_epoch, ranks=None):  # noqa: ARG002
        done = len([line for line in read_log(self.log) if line[0] == folder.name])
        for epoch in range(1, self.epochs + 1):
            if epoch > done:
                time.sleep(self.seconds)
                with self.log.open("a") as file:
                    file.write(f"{folder.name} {epoch}\n")
            if not on_epoch(self.report(spec, epoch)):
                return make_result(spec, folder, Outcome.PRUNED, epochs=epoch)
        error = None if self.outcome is Outcome.FINISHED else "it broke"
        return make_result(spec, folder, self.outcome, epochs=self.epochs, error=error)

    def report(self, spec, epoch):
        return make_report(spec, epoch)


@dataclass(frozen=True, kw_only=True)
class TroubledObjective(FastObjective):
    """Runs that break in the ways that runs break, by number; each leaves its attempts in a file."""

    troubles: Mapping[int, str]
    most_bytes: int = 0

    def __call__(self, spec, folder, on_epoch, ranks=None):
        folder.mkdir(parents=True, exist_ok=True)
        attempts = folder / "attempts"
        with attempts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        trouble, attempt = self.troubles.get(int(folder.name)), len(attempts.read_text().split())
        return super().__call__(spec, folder, partial(self._epoch, on_epoch, folder, trouble, attempt), ranks)

    def _epoch(self, on_epoch, folder, trouble, attempt, report):
        if trouble == "is not a number" and report.epoch == 2:
            return on_epoch(replace(report, score=math.nan))
        go_on = on_epoch(report)
        if trouble == "raises":
            raise KeyError("a bug")
        if trouble == "dies" or (trouble == "dies once" and attempt == 1 and report.epoch == 2):
            os._exit(1)
        if trouble == "needs memory":
            too_many = too_many_clips(folder)
            clips = 8 if too_many is None else too_many // 2
            if clips > 2:
                MemoryWatch(folder, clips=clips, limit_bytes=1)._watch()
        if trouble == "takes all memory" and attempt == 1:
            take_memory(self.most_bytes)
        if trouble == "is slow":
            time.sleep(1.0)
        if trouble == "hangs":
            with HangWatch(folder, limit_seconds=0.5):
                time.sleep(600)
        return go_on


def take_memory(most_bytes):
    """Take more and more memory until somebody ends this process."""
    block = 2**27
    taken = []
    while len(taken) * block < most_bytes:
        taken.append(b"1" * block)
        time.sleep(0.05)
    time.sleep(5.0)
    raise RuntimeError(f"nobody ended a process with {most_bytes / 1e9:.1f} GB")


def read_log(path):
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def suggest_few(ask):
    """Ask for four hyperparameters instead of twenty: a run is asked for in milliseconds."""
    ask.number("optimizer.core_lr", 1e-4, 1e-2, log=True)
    ask.number("optimizer.readout_lr", 1e-4, 1e-2, log=True)
    ask.whole("loader.batch_size", 1, 8)
    ask.whole("model.num_heads", 1, 4)


def suggest_two(ask):
    """Ask for what every run has, a tiny one, too."""
    ask.number("optimizer.core_lr", 1e-4, 1e-2, log=True)
    ask.whole("loader.batch_size", 2, 4)


def open_study(
    root,
    *,
    seed=0,
    bounds=None,
    pruner="hyperband",
    identity=None,
    epochs=EPOCHS,
    suggest=suggest_few,
    base=None,
    sampler="tpe",
):
    base = replace(base or recipe("vivit", scale="demo"), epochs=epochs)
    bounds = bounds or Bounds()
    plan = plan_space("vivit", suggest, base, bounds)
    study = Study(
        root / "study",
        plan.space,
        bounds=bounds,
        pruning=PruningConfig(pruner=pruner, max_epochs=epochs),
        seed=seed,
        identity=identity or {"recordings": "a"},
        sampler=sampler,
    )
    without_waiting_for_the_disk(study)
    if study.is_new:
        study.enqueue(plan.published)
    return study


def without_waiting_for_the_disk(study):
    """Let SQLite return before the disk has written: a test kills processes, not the machine."""
    engine = study._study._storage._backend.engine
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    engine.dispose()


def search(root, *, total, objective=None, limits=None, observers=(), check=lambda _: None, **options):
    study = open_study(root, **options)
    driver = Driver(study, limits or Limits(runs=total), observers=observers, check=check)
    try:
        driver.run_here(objective or FastObjective(log=root / "log"))
        return study.trials()
    finally:
        study.close()


def search_on_ray(root, *, total, objective, config, **options):
    """Search on Ray; returns the runs and the driver."""
    from hpo.cluster import run_on_ray

    study = open_study(root, **options)
    driver = Driver(study, Limits(runs=total))
    try:
        run_on_ray(driver, objective, config)
        return study.trials(), driver
    finally:
        study.close()


def told(trials: Sequence) -> list:
    """Return all that a study says about its runs, except for clocks and database keys."""
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.intermediate_values) for trial in trials
    ]


def slow_search(root: Path, total: int) -> None:
    """Search with epochs of some milliseconds: something to kill."""
    search(root, total=total, objective=FastObjective(log=root / "log", seconds=0.004))


if __name__ == "__main__":
    slow_search(Path(sys.argv[1]), int(sys.argv[2]))
