"""What it costs to have runs executed for you: each lane of a search beside a plain Optuna loop.

    python benchmarks/lanes.py                     # a few minutes
    python benchmarks/lanes.py --lanes actors      # one lane beside the two loops in this process

The same tiny training is made in every way, in short runs and in long ones. A line through both gives seconds
per run and per epoch; what a lane has more than the plain loop is its overhead. Starting (the group of
workers of the warm lane, for one) is counted apart: what one run takes, less a run and its epochs. Every
search is timed ``--repeats`` times, and the medians count.

A second table has runs that do nothing, of 2 and 42 epochs: what a report costs is too little to be seen
beside training. A Ray Train run per run cannot be empty, so that lane is not in it.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

# This folder is first on the path of a script, and models.py in it would be found in place of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import optuna  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.experiment import SimulationConfig  # noqa: E402
from data.simulation import simulate  # noqa: E402
from data.sources import open_recordings  # noqa: E402
from hpo.cluster import ClusterConfig, run_on_ray, start_ray  # noqa: E402
from hpo.driver import Driver, Limits, Objective, OnEpoch  # noqa: E402
from hpo.lanes import Lane  # noqa: E402
from hpo.objective import make_objective  # noqa: E402
from hpo.pruning import PruningConfig  # noqa: E402
from hpo.space import Ask, Bounds, plan_space  # noqa: E402
from hpo.study import Study  # noqa: E402
from training.names import with_values  # noqa: E402
from training.recipes import recipe  # noqa: E402
from training.results import EpochReport, Outcome, RunResult  # noqa: E402
from training.spec import RunSpec  # noqa: E402

Way = Callable[[int, int, Path], None]
"""Makes so many runs of so many epochs in a folder."""
MakeObjective = Callable[[ClusterConfig], Objective]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of one way.

    Attributes:
        start: before the first run.
        run: of a run without its epochs.
        epoch: of an epoch, training included.
    """

    start: float
    run: float
    epoch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyObjective:
    """Reports epochs that took no time."""

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: OnEpoch, ranks: object = None) -> RunResult:  # noqa: ARG002
        """Make a run without training."""
        for epoch in range(1, spec.epochs + 1):
            on_epoch(
                EpochReport(
                    epoch=epoch,
                    loss=1.0,
                    score=0.1,
                    score_by_session={},
                    best_score=0.1,
                    rate=0.1,
                    seconds=0.0,
                    clips_per_second=1.0,
                    peak_memory_bytes=1,
                )
            )
        return RunResult(
            run_id=folder.name,
            spec=spec,
            outcome=Outcome.FINISHED,
            score=0.1,
            score_by_session={},
            epochs=spec.epochs,
            seconds=0.0,
            checkpoint=None,
            error=None,
        )


def tiny_run(epochs: int) -> RunSpec:
    """Return a training of milliseconds per epoch."""
    spec = recipe("factorized", scale="demo")
    return with_values(
        spec,
        {
            "model.channels": (4,),
            "loader.clip_frames": 40,
            "loader.batch_size": 8,
            "loader.clips_per_session": 8,
            "epochs": epochs,
        },
    )


def suggest(ask: Ask) -> None:
    """Ask for two rates, so that runs differ."""
    ask.number("optimizer.core_lr", 1e-4, 1e-2, log=True)
    ask.number("model.spatial_smoothness", 1e-2, 1e2, log=True)


def plain_loop(make: MakeObjective) -> Way:
    """Return Optuna's own loop, with its storage in a file, around the training."""

    def search(runs: int, epochs: int, folder: Path) -> None:
        folder.mkdir(parents=True)
        train = make(ClusterConfig())
        base = tiny_run(epochs)
        study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", direction="maximize")

        def objective(trial: optuna.Trial) -> float:
            ask = Ask(trial)
            suggest(ask)

            def on_epoch(report: object) -> bool:
                trial.report(report.score, report.epoch)  # type: ignore[attr-defined]
                return True

            result = train(with_values(base, ask.values), folder / str(trial.number), on_epoch)
            assert result.score is not None, result.error
            return result.score

        study.optimize(objective, n_trials=runs)

    return search


def driven(make: MakeObjective, lane: Lane | None) -> Way:
    """Return a search of ours: in this process, or on a Ray that runs already."""

    def search(runs: int, epochs: int, folder: Path) -> None:
        plan = plan_space("factorized", suggest, tiny_run(epochs), Bounds())
        study = Study(
            folder,
            plan.space,
            bounds=Bounds(),
            pruning=PruningConfig(pruner="none", max_epochs=epochs),
            seed=0,
            identity={},
        )
        driver = Driver(study, Limits(runs=runs))
        config = ClusterConfig(slots=1, lane=lane or "actors")
        objective = make(config)
        try:
            if lane is None:
                driver.run_here(objective)
            else:
                run_on_ray(driver, objective, config)
            assert all(trial.state.name == "COMPLETE" for trial in study.trials()), study.trials()[-1]
        finally:
            study.close()

    return search


def measure(way: Way, folder: Path, *, runs: int, short: int, long: int, repeats: int) -> Spent:
    """Time searches of one short run, of several short and of several long ones."""
    sizes = {"one": (1, short), "several": (runs, short), "long": (runs, long)}
    # What is imported and compiled once is no overhead of anybody's.
    way(1, short, folder / "first")
    times: dict[str, list[float]] = {name: [] for name in sizes}
    for repeat in range(repeats):
        for name, (count, epochs) in sizes.items():
            began = time.perf_counter()
            way(count, epochs, folder / f"{name}-{repeat}")
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(found) for name, found in times.items()}
    epoch = (median["long"] - median["several"]) / (runs * (long - short))
    run = (median["several"] - median["one"]) / (runs - 1) - short * epoch
    return Spent(start=median["one"] - run - short * epoch, run=run, epoch=epoch)


def main() -> None:
    """Measure every way and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", nargs="+", choices=get_args(Lane), default=list(get_args(Lane)))
    parser.add_argument(
        "--runs", type=int, default=8, help="runs of a search; a third of them in the train lane"
    )
    parser.add_argument("--repeats", type=int, default=3, help="times that each search is timed")
    parser.add_argument("--short", type=int, default=2, help="epochs of a short run")
    parser.add_argument("--long", type=int, default=12, help="epochs of a long run")
    parsed = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = replace(SimulationConfig.for_scale("demo"), mice=1, neurons=50, train_clips=24)
        recordings = open_recordings(simulate(folder / "raw", config), cache=folder / "cache")
        training = partial(make_objective, recordings=recordings, select_on="holdout")
        options = {"runs": parsed.runs, "repeats": parsed.repeats}
        spans = {"short": parsed.short, "long": parsed.long}
        trained = measure_all(training, folder / "trained", parsed.lanes, **options, **spans)
        lanes = [lane for lane in parsed.lanes if lane != "train"]
        empty = measure_all(lambda _: EmptyObjective(), folder / "empty", lanes, **options, short=2, long=42)
    console.print(overhead_table(trained, title="tiny training"))
    console.print(overhead_table(empty, title="runs that do nothing"))


def measure_all(
    make: MakeObjective, folder: Path, lanes: Sequence[Lane], *, runs: int, **options: int
) -> dict[str, Spent]:
    """Measure the two loops in this process, and some lanes."""
    ways = {
        "plain Optuna loop": plain_loop(make),
        "our driver, this process": driven(make, None),
        **{f"lane {lane}": driven(make, lane) for lane in lanes},
    }
    spent: dict[str, Spent] = {}
    for number, (name, way) in enumerate(ways.items()):
        if name.startswith("lane"):
            start_ray(ClusterConfig())
        few = max(runs // 3, 2) if name == "lane train" else runs
        spent[name] = measure(way, folder / str(number), runs=few, **options)
        print(f"{name}: {spent[name]}", flush=True)
    return spent


def overhead_table(spent: dict[str, Spent], *, title: str) -> Table:
    """Return what every way takes, and what it takes more than the plain loop."""
    table = Table(
        title=f"{title}: seconds; overhead is what is above the plain Optuna loop", title_justify="left"
    )
    columns = ("way", "start", "per run", "per epoch", "overhead per run", "overhead per report")
    for column in columns:
        table.add_column(column, justify="left" if column == "way" else "right")
    plain = next(iter(spent.values()))
    for name, each in spent.items():
        table.add_row(
            name,
            f"{each.start:.2f}",
            f"{each.run:.4f}",
            f"{each.epoch:.4f}",
            f"{each.run - plain.run:.4f}",
            f"{each.epoch - plain.epoch:.4f}",
        )
    return table


if __name__ == "__main__":
    main()
