"""What a search's driver alone costs, without Ray and training: how many runs one core can start and follow.

    python benchmarks/driver.py                          # 64 runs at a time, 3 rounds: about 20 CPU seconds
    python benchmarks/driver.py --slots 8 --plain        # beside it, the same with Optuna's own storage

Runs report at once, so that the driver never waits. CPU seconds are the process's own and hardly depend on
what else the machine does; wall time does, and on how long the disk takes for a transaction.

ask       propose and store a run of 21 hyperparameters (ViViT's demo space)
report    store an epoch and decide whether to go on (Hyperband)
end       store how a run ended
runs      that one core can drive per second at so many reports each
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

# This folder is first on the path of a script, and this file would be found in place of our package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import optuna  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from hpo.checkpoints import CheckpointKeeper  # noqa: E402
from hpo.driver import Driver, Limits  # noqa: E402
from hpo.pruning import PruningConfig  # noqa: E402
from hpo.space import Bounds, plan_space  # noqa: E402
from hpo.spaces import SPACES  # noqa: E402
from hpo.study import Asked, Study  # noqa: E402
from training.recipes import recipe  # noqa: E402
from training.results import EpochReport, Outcome, RunResult  # noqa: E402


class Clock:
    """Adds up CPU and wall seconds of parts, by name."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.count: dict[str, int] = defaultdict(int)

    def time(self, name, function, *arguments):
        """Call a function and return what it returns."""
        cpu, wall = time.process_time(), time.perf_counter()
        answer = function(*arguments)
        self.cpu[name] += time.process_time() - cpu
        self.wall[name] += time.perf_counter() - wall
        self.count[name] += 1
        return answer

    def per_call(self, name: str) -> str:
        """Return CPU and wall time of a call."""
        count = max(self.count[name], 1)
        return f"{1000 * self.cpu[name] / count:.1f} / {1000 * self.wall[name] / count:.1f} ms"


def report_of(asked: Asked, epoch: int) -> EpochReport:
    assert asked.spec is not None
    score = 0.1 + 0.01 * epoch - abs(asked.spec.optimizer.core_lr - 0.002)
    return EpochReport(
        epoch=epoch,
        loss=1.0,
        score=score,
        score_by_session={"a": score},
        best_score=score,
        rate=0.1,
        seconds=1.0,
        clips_per_second=1.0,
        peak_memory_bytes=1,
    )


def result_of(asked: Asked, *, epochs: int) -> RunResult:
    assert asked.spec is not None
    return RunResult(
        run_id=f"{asked.number:04d}",
        spec=asked.spec,
        outcome=Outcome.FINISHED,
        score=report_of(asked, epochs).score,
        score_by_session={},
        epochs=epochs,
        seconds=float(epochs),
        checkpoint=None,
        error=None,
    )


def drive(folder: Path, *, slots: int, rounds: int, epochs: int) -> Clock:
    """Drive runs that report in turn, so many at a time."""
    base, bounds = replace(recipe("vivit", scale="demo"), epochs=epochs), Bounds()
    study = Study(
        folder / "study",
        plan_space("vivit", SPACES["vivit"]["demo"], base, bounds).space,
        bounds=bounds,
        pruning=PruningConfig(max_epochs=epochs),
        seed=0,
        identity={"benchmark": "driver"},
    )
    driver = Driver(study, Limits(runs=slots * rounds), observers=[CheckpointKeeper(study)])
    clock, live = Clock(), {}
    while True:
        while len(live) < slots and (asked := clock.time("ask", driver.next)) is not None:
            live[asked.number] = (asked, 0)
        if not live:
            break
        for number, (asked, done) in list(live.items()):
            live[number] = (asked, done + 1)
            goes_on = clock.time("report", driver.epoch, number, report_of(asked, done + 1))
            if goes_on and done + 1 == epochs:
                clock.time("end", driver.ended, number, result_of(asked, epochs=epochs))
            if not goes_on or done + 1 == epochs:
                del live[number]
    study.close()
    return clock


def with_optunas_storage() -> None:
    """Let studies use what Optuna makes of an address: every value a transaction, every look a query."""

    class Plain:
        def __new__(cls, url):
            storage = optuna.storages.get_storage(url)
            storage.composing = nullcontext
            storage.sync = storage.dispose = lambda **_: None
            return storage

    import hpo.study

    hpo.study.OneWriterStorage = Plain


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=64, help="runs at a time")
    parser.add_argument("--rounds", type=int, default=3, help="runs per slot")
    parser.add_argument("--epochs", type=int, default=10, help="reports of a run that is not stopped")
    parser.add_argument("--plain", action="store_true", help="measure Optuna's own storage as well")
    parsed = parser.parse_args(arguments)
    table = Table(title=f"{parsed.slots} runs at a time, {parsed.slots * parsed.rounds} in all: CPU / wall")
    for name in ("storage", "ask", "report", "end", "runs per core and s"):
        table.add_column(name, justify="right")
    for storage in ["ours", "Optuna's"][: 1 + parsed.plain]:
        if storage != "ours":
            with_optunas_storage()
        with tempfile.TemporaryDirectory() as folder:
            clock = drive(Path(folder), slots=parsed.slots, rounds=parsed.rounds, epochs=parsed.epochs)
        per_run = sum(clock.cpu.values()) / (parsed.slots * parsed.rounds)
        parts = [clock.per_call(name) for name in ("ask", "report", "end")]
        reports = clock.count["report"] / (parsed.slots * parsed.rounds)
        table.add_row(storage, *parts, f"{1 / per_run:.1f} of {reports:.1f} reports")
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
