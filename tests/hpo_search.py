"""A search with an objective of milliseconds, also as a program that can be killed."""

import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpo.driver import Driver, plan_space
from hpo.space import Bounds
from hpo.spaces import SPACES
from hpo.study import PruningConfig, Study
from training.recipes import recipe
from training.results import EpochReport, Outcome, RunResult

EPOCHS = 4


def score_of(spec, epoch):
    return 0.3 - abs(spec.optimizer.core_lr - 0.002) * 20 + 0.01 * epoch


def make_objective(log, *, seconds=0.0, outcome=Outcome.FINISHED):
    """Every epoch that is trained leaves a line in ``log``; a run resumes from the lines it left."""

    def objective(spec, folder, on_epoch):
        folder.mkdir(parents=True, exist_ok=True)
        trained = folder / "epochs"
        done = len(trained.read_text().split()) if trained.exists() else 0
        go_on, epoch = True, done
        while go_on and epoch < EPOCHS:
            epoch += 1
            time.sleep(seconds)
            with trained.open("a") as file:
                file.write(f"{epoch}\n")
            with log.open("a") as file:
                file.write(f"{folder.name} {epoch}\n")
            go_on = on_epoch(
                EpochReport(
                    epoch=epoch,
                    loss=1.0,
                    score=score_of(spec, epoch),
                    score_by_session={},
                    best_score=score_of(spec, epoch),
                    rate=0.1,
                    seconds=0.0,
                    clips_per_second=1.0,
                    peak_memory_bytes=1,
                )
            )
        ended = outcome if go_on else Outcome.PRUNED
        return RunResult(
            run_id=folder.name,
            spec=spec,
            outcome=ended,
            score=None if ended is Outcome.FAILED else score_of(spec, epoch),
            score_by_session={},
            epochs=epoch,
            seconds=0.0,
            checkpoint=None,
            error="it broke" if ended is Outcome.FAILED else None,
        )

    return objective


def open_study(root, *, seed=0, bounds=None, pruner="hyperband", identity=None):
    base = replace(recipe("vivit", scale="demo"), epochs=EPOCHS)
    bounds = bounds or Bounds()
    space, published = plan_space("vivit", SPACES["vivit"]["demo"], base, bounds)
    study = Study(
        root / "study",
        space,
        bounds=bounds,
        pruning=PruningConfig(pruner=pruner, max_epochs=EPOCHS),
        seed=seed,
        identity=identity or {"recordings": "a"},
    )
    study.enqueue(published)
    return study


def search(root, *, total, seconds=0.0, outcome=Outcome.FINISHED, **options):
    study = open_study(root, **options)
    driver = Driver(
        study,
        [],
        Console(quiet=True),
        root=root,
        objective=make_objective(root / "log", seconds=seconds, outcome=outcome),
        tracked=False,
    )
    try:
        driver.run(total=total)
        return study.trials()
    finally:
        study.close()


if __name__ == "__main__":
    search(Path(sys.argv[1]), total=int(sys.argv[2]), seconds=0.01)
