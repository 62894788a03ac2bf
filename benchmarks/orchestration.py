"""What it costs to drive many runs at a time: searches of runs that only sleep, on simulated machines.

    python benchmarks/orchestration.py                         # 2 to 64 slots, runs of 10 s: about 15 minutes
    python benchmarks/orchestration.py --slots 8 --seconds 2   # one row

The study, driver, pruner, checkpoint keeper, MLflow mirror, Tune and Ray are the real ones; a run sleeps
instead of training and reports as a run does. Machines are Ray's own simulated ones (``ray.cluster_utils``).

starting      from the first start of a run to the first start in the last process: what so many processes on
              a few cores cost this machine, not the search
time          from there to the start of the last run; the following columns are of this time
efficiency    share of that time in which slots are busy with a run, measured in the runs
gap           from a run's last report to the start of the next one in the same process
driver        CPU seconds per second of the driver process, and per run
study         growth of the study's file per report
MLflow        rows of metrics per second that reached a SQLite store in the driver's background thread
"""

import argparse
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

# This folder is first on the path of a script, and this file would be found in place of our package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from hpo.checkpoints import CheckpointKeeper  # noqa: E402
from hpo.cluster import ClusterConfig, run_on_ray  # noqa: E402
from hpo.driver import Driver, Limits  # noqa: E402
from hpo.mirror import Mirror  # noqa: E402
from hpo.pruning import PruningConfig  # noqa: E402
from hpo.space import Bounds, plan_space  # noqa: E402
from hpo.spaces import SPACES  # noqa: E402
from hpo.study import Study  # noqa: E402
from training.recipes import recipe  # noqa: E402
from training.results import EpochReport, Outcome, RunResult  # noqa: E402
from training.spec import RunSpec  # noqa: E402
from training.tracking import prepare_store  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Sleeper:
    """A run that sleeps, and notes when in which process."""

    log: Path
    seconds: float
    epochs: int

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: Callable[[EpochReport], bool]) -> RunResult:
        """Sleep, epoch by epoch."""
        started = time.time()
        score = 0.0
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.seconds / self.epochs)
            reported = time.time()
            score = 0.1 + 0.01 * epoch - abs(spec.optimizer.core_lr - 0.002)
            if not on_epoch(
                EpochReport(
                    epoch=epoch,
                    loss=1.0,
                    score=score,
                    score_by_session={"a": score},
                    best_score=score,
                    rate=0.1,
                    seconds=self.seconds / self.epochs,
                    clips_per_second=1.0,
                    peak_memory_bytes=1,
                )
            ):
                break
        with self.log.open("a") as file:
            file.write(json.dumps([os.getpid(), started, reported]) + "\n")
        return RunResult(
            run_id=folder.name,
            spec=spec,
            outcome=Outcome.FINISHED,
            score=score,
            score_by_session={"a": score},
            epochs=self.epochs,
            seconds=self.seconds,
            checkpoint=None,
            error=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row."""

    slots: int
    runs: int
    starting: float
    window: float
    efficiency: float
    gaps: list[float]
    driver_cores: float
    driver_per_run: float
    bytes_per_report: float
    rows_per_second: float


@contextmanager
def simulated_machines(slots: int, machines: int) -> Iterator[None]:
    """Start Ray with so many slots on so many machines, and none on the head."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    # On a machine that others use, Ray would put its workers last.
    os.environ.setdefault("RAY_worker_niceness", "0")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    try:
        for _ in range(machines):
            cluster.add_node(num_cpus=slots // machines, object_store_memory=80_000_000)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure(folder: Path, *, slots: int, rounds: int, seconds: float, epochs: int) -> Measured:
    """Search with sleeping runs and read what they noted."""
    base = replace(recipe("vivit", scale="demo"), epochs=epochs)
    bounds = Bounds()
    plan = plan_space("vivit", SPACES["vivit"]["demo"], base, bounds)
    study = Study(
        folder / "study",
        plan.space,
        bounds=bounds,
        # Stopped runs would make rows of different length; what stopping decides is computed all the same.
        pruning=PruningConfig(pruner="none", max_epochs=epochs),
        seed=0,
        identity={"benchmark": "orchestration"},
    )
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    prepare_store(uri, experiment=study.space.name)
    mirror = Mirror(study, [], uri=uri, uid="benchmark", tags={})
    log = folder / "runs.jsonl"
    log.touch()
    runs = slots * rounds
    driver = Driver(study, Limits(runs=runs), observers=[CheckpointKeeper(study), mirror])
    samples: list[tuple[float, float]] = []
    size_before = (folder / "study/study.db").stat().st_size
    run_on_ray(
        driver,
        Sleeper(log=log, seconds=seconds, epochs=epochs),
        ClusterConfig(slots=slots),
        on_idle=lambda: samples.append((time.time(), time.process_time())),
    )
    grown = (folder / "study/study.db").stat().st_size - size_before
    mirror.close(finished=True, wait_seconds=120.0)
    study.close()
    noted = [json.loads(line) for line in log.read_text().splitlines()]
    starts = sorted(started for _, started, _ in noted)
    first_start: dict[int, float] = {}
    for process, started, _ in noted:
        first_start[process] = min(started, first_start.get(process, started))
    begin, end = max(first_start.values()), starts[-1]
    busy = sum(max(min(stop, end) - max(start, begin), 0.0) for _, start, stop in noted)
    during = [sample for sample in samples if begin <= sample[0] <= end]
    cpu = during[-1][1] - during[0][1]
    started_during = sum(begin < started <= end for started in starts)
    return Measured(
        slots=slots,
        runs=len(noted),
        starting=begin - starts[0],
        window=end - begin,
        efficiency=busy / (slots * (end - begin)),
        gaps=gaps(noted),
        driver_cores=cpu / (during[-1][0] - during[0][0]),
        driver_per_run=cpu / max(started_during, 1),
        bytes_per_report=grown / (runs * epochs),
        rows_per_second=rows_per_second(folder / "mlflow.db", begin=begin, end=end),
    )


def gaps(noted: Sequence[Sequence[float]]) -> list[float]:
    """Return the pauses between runs of the same process."""
    by_process: dict[float, list[tuple[float, float]]] = {}
    for process, started, stopped in noted:
        by_process.setdefault(process, []).append((started, stopped))
    found = []
    for runs in by_process.values():
        runs.sort()
        found += [later[0] - earlier[1] for earlier, later in pairwise(runs)]
    return found


def rows_per_second(path: Path, *, begin: float, end: float) -> float:
    """Return how many rows of metrics of that time the store holds, per second."""
    with sqlite3.connect(path) as store:
        (count,) = store.execute(
            "select count(*) from metrics where timestamp between ? and ?", (begin * 1000, end * 1000)
        ).fetchone()
    return float(count / (end - begin))


def row(measured: Measured) -> list[str]:
    ordered = sorted(measured.gaps)
    return [
        str(measured.slots),
        str(measured.runs),
        f"{measured.starting:.0f} s",
        f"{measured.window:.0f} s",
        f"{100 * measured.efficiency:.1f} %",
        f"{1000 * statistics.median(ordered):.0f} / {1000 * ordered[int(0.95 * (len(ordered) - 1))]:.0f} ms",
        f"{measured.driver_cores:.2f} cores, {measured.driver_per_run:.2f} s",
        f"{measured.bytes_per_report:.0f} B",
        f"{measured.rows_per_second:.0f}/s",
    ]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 8, 32, 64])
    parser.add_argument("--machines", type=int, default=4, help="at most; each has the same number of slots")
    parser.add_argument("--seconds", type=float, default=10.0, help="that a run sleeps")
    parser.add_argument("--epochs", type=int, default=10, help="reports of a run")
    parser.add_argument("--rounds", type=int, default=5, help="runs per slot")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    parsed = parse_arguments(arguments)
    console = Console(width=120)
    table = Table(title=f"runs of {parsed.seconds:g} s with {parsed.epochs} reports, {os.cpu_count()} cores")
    for name in (
        "slots",
        "runs",
        "starting",
        "time",
        "efficiency",
        "gap: median / 95 %",
        "driver",
        "study",
        "MLflow",
    ):
        table.add_column(name, justify="right")
    for slots in parsed.slots:
        machines = min(parsed.machines, slots)
        with tempfile.TemporaryDirectory() as folder, simulated_machines(slots, machines):
            measured = measure(
                Path(folder),
                slots=slots,
                rounds=parsed.rounds,
                seconds=parsed.seconds,
                epochs=parsed.epochs,
            )
        console.print(row(measured), highlight=False)
        table.add_row(*row(measured))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
