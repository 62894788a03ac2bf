"""Time and memory of the published models, beside straightforward implementations of the same mathematics.

    python benchmarks/models.py                             # all families, batch 2: 30 minutes, 24 GB
    python benchmarks/models.py --family v1fm --repeats 1   # a quick look at one
    python benchmarks/models.py --family vivit --batch 1    # half the memory
    python benchmarks/models.py --opportunities             # what each single change of the mathematics gives

One session of 7,863 neurons and the published clip length. Ours and the straightforward one run in a process
each and take turns, so that a ratio compares neighbors in time and peak memory is the model's; figures are
medians. CPU seconds are the steadier ones where the machine has other work. A training step counts as three
forward passes of floating-point operations of the straightforward model; their rate, per CPU second, stands
beside that of a matrix product in the same process.
"""

import argparse
import statistics
import sys
from pathlib import Path

# This folder is first on the path of a script, and this file would be found in place of the package "models".
sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.straightforward.measurement import PUBLISHED_FRAMES, Request, Worker, ask  # noqa: E402
from benchmarks.straightforward.opportunities import OPPORTUNITIES, compare  # noqa: E402

COLUMNS = (
    "model",
    "task",
    *("wall s", "plain", "ratio"),
    *("CPU s", "plain", "ratio"),
    *("GiB", "plain", "ratio"),
    "GFLOP",
    "GFLOP/s",
    "per CPU s",
    "of matmul",
)
LARGEST_DEVIATION = 1e-2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=sorted(PUBLISHED_FRAMES), help="default: all")
    parser.add_argument("--batch", type=int, default=2, help="clips of a batch")
    parser.add_argument("--neurons", type=int, default=7863)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--opportunities", action="store_true", help="measure single changes instead")
    arguments = parser.parse_args()
    console = Console(width=150)
    if arguments.opportunities:
        return show_opportunities(console, repeats=arguments.repeats, threads=arguments.threads)
    table = Table(*COLUMNS, title=f"batch {arguments.batch}, {arguments.neurons} neurons")
    worst = 0.0
    for family in arguments.family or sorted(PUBLISHED_FRAMES):

        def request(task: str, *, plain: bool = False, family: str = family) -> Request:
            return Request(
                family=family,
                task=task,
                plain=plain,
                num_clips=arguments.batch,
                num_neurons=arguments.neurons,
                threads=arguments.threads,
            )

        comparison = ask(request("compare"))
        worst = max(worst, comparison["deviation"])
        console.print(f"{family}: outputs differ by at most {comparison['deviation']:.1e} deviations")
        traced = comparison["traced_gib"], comparison["plain_traced_gib"]
        console.print(
            f"{family}: tensors of a training step take {traced[0]:.2f} GiB, plain {traced[1]:.2f}, "
            f"ratio {traced[1] / traced[0]:.2f}"
        )
        for task, passes in (("train", 3), ("eval", 1)):
            pair = (request(task), request(task, plain=True))
            cells = measure(pair, repeats=arguments.repeats, gflop=passes * comparison["gflop"])
            console.print(family, task, *cells)
            table.add_row(family, task, *cells)
    console.print(table)
    if worst > LARGEST_DEVIATION:
        console.print(f"[red]an output differs by {worst:.1e} deviations, more than {LARGEST_DEVIATION}")
        return 1
    return 0


def measure(pair: tuple[Request, Request], *, repeats: int, gflop: float) -> list[str]:
    """Let ours and the straightforward one take turns; return the cells of a row."""
    workers = [Worker(request) for request in pair]
    ours, plain = zip(*([worker.step() for worker in workers] for _ in range(repeats)), strict=True)
    peaks = [worker.finish() for worker in workers]
    values: list[float] = []
    for key in ("wall_seconds", "cpu_seconds"):
        medians = [statistics.median(getattr(step, key) for step in steps) for steps in (ours, plain)]
        ratio = statistics.median(getattr(b, key) / getattr(a, key) for a, b in zip(ours, plain, strict=True))
        values += [*medians, ratio]
    values += [*peaks, peaks[1] / peaks[0]]
    per_cpu_second = gflop / values[3]
    share = per_cpu_second / statistics.median(step.matmul_rate for step in ours)
    rates = [f"{number:.0f}" for number in (gflop, gflop / values[0], per_cpu_second)]
    return [*(f"{value:.2f}" for value in values), *rates, f"{share:.0%}"]


def show_opportunities(console: Console, *, repeats: int, threads: int) -> int:
    """Measure every opportunity and print the table."""
    table = Table("what", "where", "task", "CPU ms without", "with", "ratio", title="single changes")
    for opportunity in OPPORTUNITIES:
        without, with_it, ratio = compare(opportunity, repeats=repeats, threads=threads)
        cells = (opportunity.name, opportunity.family, opportunity.what)
        console.print(*cells, f"{without:.0f} {with_it:.0f} {ratio:.2f}")
        table.add_row(*cells, f"{without:.0f}", f"{with_it:.0f}", f"{ratio:.2f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
