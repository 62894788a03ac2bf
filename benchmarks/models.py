"""Time and memory of the published models, beside straightforward implementations of the same mathematics.

    python benchmarks/models.py                             # all families, batch 2: 30 minutes, 24 GB
    python benchmarks/models.py --family v1fm --repeats 1   # a quick look at one
    python benchmarks/models.py --family vivit --batch 1    # half the memory

One session of 7,863 neurons and the published clip length. Each measurement is made in a process of its own,
so that peak memory is the model's. A training step counts as three forward passes of floating-point
operations of the straightforward model. CPU seconds are the steadier figure where the machine has other work.
"""

import argparse
import sys
from pathlib import Path

# This folder is first on the path of a script, and this file would be found in place of the package "models".
sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.straightforward.measurement import PUBLISHED_FRAMES, Request, ask  # noqa: E402

COLUMNS = (
    "model",
    "task",
    "wall s",
    "plain",
    "ratio",
    "CPU s",
    "plain",
    "ratio",
    "GiB",
    "plain",
    "ratio",
    "GFLOP",
    "GFLOP/s",
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
    arguments = parser.parse_args()
    console = Console(width=150)
    table = Table(*COLUMNS, title=f"batch {arguments.batch}, {arguments.neurons} neurons")
    worst = 0.0
    for family in arguments.family or sorted(PUBLISHED_FRAMES):

        def request(task: str, *, plain: bool = False, family: str = family) -> dict[str, float]:
            return ask(
                Request(
                    family=family,
                    task=task,
                    plain=plain,
                    num_clips=arguments.batch,
                    num_neurons=arguments.neurons,
                    repeats=arguments.repeats,
                    threads=arguments.threads,
                )
            )

        comparison = request("compare")
        worst = max(worst, comparison["deviation"])
        console.print(f"{family}: outputs differ by at most {comparison['deviation']:.1e} deviations")
        for task, passes in (("train", 3), ("eval", 1)):
            ours, plain = request(task), request(task, plain=True)
            gflop = passes * comparison["gflop"]
            rate = gflop / ours["wall_seconds"]
            cells = [
                f"{value:.2f}"
                for key in ("wall_seconds", "cpu_seconds", "peak_gib")
                for value in (ours[key], plain[key], plain[key] / ours[key])
            ]
            share = rate / ours["matmul_gflops"]
            table.add_row(family, task, *cells, f"{gflop:.0f}", f"{rate:.0f}", f"{share:.0%}")
    console.print(table)
    if worst > LARGEST_DEVIATION:
        console.print(f"[red]an output differs by {worst:.1e} deviations, more than {LARGEST_DEVIATION}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
