"""Build an ensemble: ``python ensembles/build.py v1fm31``."""

import argparse
import logging
import os
import sys
from pathlib import Path

EXAMPLES = """recipes:
  v1fm31                            Dynamic-V1FM's 31 readouts, each with its core
  v1fm31-shared                     the same 31 readouts on one core that is trained once
  seeds MODEL --seeds N|paper       one model under several seeds; factorized with the paper's 14 seeds is
                                    the ensemble baseline
  folds MODEL                       one model without each of its folds; dwiseneuro also distilled
  study NAME --top K                the best runs of a search, nothing is trained again
  members RUN RUN ...               any runs: folders, names below the root, ids of MLflow runs

examples:
  python ensembles/build.py v1fm31 --subset 4                     4 of the 31, small, on simulated recordings
  python ensembles/build.py seeds factorized --seeds paper --recordings store/ --scale full
  python ensembles/build.py seeds factorized                      again: goes on where it was interrupted
  python ensembles/build.py seeds factorized --submit main bonus --frames 249
  python ensembles/build.py --verify runs/builds/seeds-factorized-demo

exit codes: 0 done, 1 a member or the check failed, 2 wrong use, 130 interrupted (the same command goes on)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Train what is missing of an ensemble, average it, score it, explain it, publish it.",
        epilog=EXAMPLES,
    )
    parser.add_argument("recipe", nargs="?", help="see below")
    parser.add_argument("arguments", nargs="*", help="what the recipe is of: a model, a study, runs")
    what = parser.add_argument_group("what to build")
    what.add_argument("--recordings", nargs="+", type=Path, metavar="DIR", help="default: simulated ones")
    what.add_argument(
        "--scale", choices=("full", "demo"), help="default: full with --recordings and a GPU, else demo"
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a hyperparameter of all members",
    )
    what.add_argument("--seeds", default="5", help="of the recipe seeds: a number, or paper (default: 5)")
    what.add_argument("--top", type=int, default=5, help="of the recipe study: runs (default: 5)")
    what.add_argument("--subset", type=int, help="so many members, spread over the recipe's list")
    how = parser.add_argument_group("how")
    how.add_argument("--blend", help="force a blend; without it others than the mean must prove themselves")
    how.add_argument(
        "--on-failure", choices=("continue", "stop"), default="continue", help="when a member fails"
    )
    how.add_argument(
        "--max-concurrent", type=int, help="members at a time (default: what cores, GPUs or cluster allow)"
    )
    how.add_argument(
        "--gpus-per-member", type=float, help="default: 1 where this machine has GPUs; may be a fraction"
    )
    how.add_argument("--cpus-per-member", type=float, help="default: this machine's share, or 4 on a cluster")
    how.add_argument("--workers", type=int, default=1, help="processes that train one member together")
    how.add_argument("--address", help="Ray cluster to use (default: RAY_ADDRESS, or this machine alone)")
    how.add_argument(
        "--wait", type=float, default=20.0, metavar="MINUTES", help="for machines, at most (default: 20)"
    )
    out = parser.add_argument_group("what comes out")
    out.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("STRIATE_STORAGE", "runs")),
        help="folder of runs and builds (default: STRIATE_STORAGE, else runs)",
    )
    out.add_argument("--name", help="name of the build (default: the recipe and its scale)")
    out.add_argument("--dry-run", action="store_true", help="print the plan, do nothing")
    out.add_argument(
        "--distill",
        type=float,
        nargs="?",
        const=0.7,
        metavar="RATIO",
        help="also train one model on the ensemble's predictions, with this share of them (0.7)",
    )
    out.add_argument(
        "--soup",
        action="store_true",
        help="also average the members' parameters; kept if not worse than the best of them",
    )
    out.add_argument(
        "--submit",
        nargs="+",
        choices=("main", "bonus"),
        default=[],
        help="write the benchmark's submission files of these tracks",
    )
    out.add_argument(
        "--frames", type=int, default=250, help="predicted frames of a submitted trial: 250, or 249"
    )
    out.add_argument("--no-tracking", action="store_true", help="do not record the build in MLflow")
    out.add_argument("--verify", type=Path, metavar="BUILD", help="check a finished build again, and end")
    parsed = parser.parse(arguments)
    if parsed.verify is None and parsed.recipe is None:
        parser.error("a recipe is needed, for example: v1fm31 --subset 4")
    return parsed


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    from ensembles.command import build_command

    return build_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
