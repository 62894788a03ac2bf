"""Which sampler and pruner find more with the same number of epochs, on noisy surfaces with known optimum.

    python benchmarks/search.py                        # methods: table, and docs/pictures/search.png
    python benchmarks/search.py --at-a-time 8          # as many runs side by side
    python benchmarks/search.py --what settings        # Hyperband's minimum and reduction
    python benchmarks/search.py --what strides         # how to ask for a stride that depends on its patch
    python benchmarks/search.py --what importances     # how stopped runs should count in importances

Every search is a real one: the ViViT space, ``hpo/sampler.py``, ``hpo/pruning.py``, ``hpo/study.py`` and
``hpo/driver.py``. Only the objective is a formula (``benchmarks/searching/surfaces.py``), and time is
simulated. With ``--at-a-time`` runs train at speeds of their own.

Regret is the optimum's score less the true final score of the run that a user would take: the finished run
with the highest observed score. Without any finished run the regret is that of a score of 0.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# This folder is first on the path of a script, and models.py in it would be found in place of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", choices=("methods", "settings", "strides", "importances"), default="methods"
    )
    parser.add_argument("--seeds", type=int, default=20, help="surfaces per method and kind of crossing")
    parser.add_argument("--budget", type=int, default=20, help="epochs of so many full runs")
    parser.add_argument("--at-a-time", type=int, default=1, help="runs side by side")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="of the methods that are compared")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--picture", type=Path, help="default: docs/pictures/search.png for methods")
    return parser.parse_args()


def main() -> None:
    """Search in every way on every surface, print the tables and draw the picture."""
    parsed = parse_arguments()
    from rich.console import Console

    console = Console(width=110)
    with ProcessPoolExecutor(parsed.processes, mp_context=get_context("spawn")) as pool:

        def on_surfaces(function: Callable[[int], Any]) -> Callable[[], list[Any]]:
            waiting = [pool.submit(function, seed) for seed in range(parsed.seeds)]
            return lambda: [future.result() for future in waiting]

        if parsed.what == "importances":
            compare_importances(parsed, console, on_surfaces)
        else:
            compare_methods(parsed, console, on_surfaces)


def compare_methods(parsed: argparse.Namespace, console: Any, on_surfaces: Callable[..., Any]) -> None:
    """Print the regret of every method, and draw it."""
    from benchmarks.searching.methods import METHODS, SETTINGS, STRIDES
    from benchmarks.searching.searches import search
    from benchmarks.searching.surfaces import CROSSINGS, MAX_EPOCHS
    from benchmarks.searching.tables import draw, print_curves, regret_table

    methods = {"methods": METHODS, "settings": SETTINGS, "strides": STRIDES}[parsed.what]
    chosen: Sequence[str] = parsed.only or tuple(methods)
    strides = parsed.what == "strides"
    crossings = CROSSINGS[:1] if strides else CROSSINGS
    options = {
        "budget": parsed.budget * MAX_EPOCHS,
        "strides_matter": strides,
        "at_a_time": parsed.at_a_time,
    }
    waiting = {
        (name, crossing): on_surfaces(partial(search, methods[name], crossing, **options))
        for name in chosen
        for crossing in crossings
    }
    searches = {key: found() for key, found in waiting.items()}
    print_curves(console, strides_matter=strides)
    for crossing in crossings:
        of_kind = {name: found for (name, kind), found in searches.items() if kind == crossing}
        console.print(regret_table(of_kind, crossing, budget=parsed.budget))
    is_whole = parsed.what == "methods" and parsed.at_a_time == 1 and not parsed.only
    picture = parsed.picture or (Path("docs/pictures/search.png") if is_whole else None)
    if picture is not None:
        draw(searches, crossings, budget=parsed.budget).savefig(picture, dpi=110)
        console.print(f"picture: {picture}")


def compare_importances(parsed: argparse.Namespace, console: Any, on_surfaces: Callable[..., Any]) -> None:
    """Print how close importances come to the true ones."""
    from benchmarks.searching.importance_ratings import importance_table, rate_importances
    from benchmarks.searching.surfaces import CROSSINGS, MAX_EPOCHS

    waiting = {
        crossing: on_surfaces(partial(rate_importances, crossing, budget=parsed.budget * MAX_EPOCHS))
        for crossing in CROSSINGS
    }
    ratings = {crossing: found() for crossing, found in waiting.items()}
    console.print(importance_table(ratings, budget=parsed.budget))


if __name__ == "__main__":
    main()
