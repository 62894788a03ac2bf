"""Search hyperparameters: ``python hpo/search.py vivit``."""

import argparse
import logging
import os
import sys
from pathlib import Path

EXAMPLES = """examples:
  python hpo/search.py vivit                                      20 small runs on simulated recordings
  python hpo/search.py vivit --recordings store/ --scale full --runs 40 --max-epochs 60
  python hpo/search.py vivit --set model.num_heads=4 --narrow optimizer.core_lr=0.001:0.01
  python hpo/search.py vivit                                      again: goes on where it was interrupted
  python hpo/search.py vivit --dry-run                            what it would do, and what that takes
  python hpo/search.py vivit --runs 40 --confirm 3                the best 3 again, with further seeds
  python hpo/search.py report vivit-demo                          report of a study, also while it runs
  python hpo/search.py reproduce vivit-demo 7                     run 7 again, exactly

exit codes: 0 done, 1 no run finished, too many failed, or not reproduced, 2 wrong use, 130 interrupted
(the same command goes on)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from hpo.arguments import parse_afterwards

    if arguments[:1] in (["report"], ["reproduce"]):
        return parse_afterwards(arguments)
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Search the hyperparameters of a model family with TPE and Hyperband on Ray.",
        epilog=EXAMPLES,
    )
    parser.set_defaults(action="search")
    parser.add_argument(
        "space", help="model family whose space is searched: vivit, v1fm, dwiseneuro, factorized, gru"
    )
    what = parser.add_argument_group("what to search")
    what.add_argument("--recordings", nargs="+", type=Path, metavar="DIR", help="default: simulated ones")
    what.add_argument(
        "--scale", choices=("full", "demo"), help="default: full with --recordings and a GPU, else demo"
    )
    what.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="pin a hyperparameter")
    what.add_argument("--narrow", action="append", default=[], metavar="NAME=LO:HI", help="narrow its range")
    what.add_argument(
        "--select-on",
        choices=("holdout", "oracle"),
        default="holdout",
        help="what chooses; oracle is the paper's protocol, and then no longer grades",
    )
    what.add_argument("--from-study", metavar="NAME", help="run the best of another study first")
    what.add_argument(
        "--from-paper",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the published values first (default: yes)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--dry-run", action="store_true", help="show the plan and what it takes; start nothing")
    how.add_argument("--runs", type=int, default=20, help="runs in all; raising it extends a study")
    how.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    how.add_argument("--pruner", choices=("hyperband", "median", "asha", "none"), default="hyperband")
    how.add_argument("--min-epochs", type=int, help="default: a ninth of --max-epochs, at least 1")
    how.add_argument("--max-epochs", type=int, help="default: 9 at demo scale, 60 at full")
    how.add_argument("--reduction", type=int, default=3, help="one of so many runs survives a rung")
    how.add_argument("--seed", type=int, default=0, help="of the proposals and of all runs")
    how.add_argument("--time-budget", type=float, metavar="MINUTES", help="stop gracefully after this time")
    how.add_argument("--gpu-hours", type=float, metavar="HOURS", help="stop gracefully after this GPU time")
    how.add_argument(
        "--run-timeout",
        type=float,
        metavar="MINUTES",
        help="a run that finishes no epoch for so long has hung: it failed, others go on (default: never)",
    )
    how.add_argument("--confirm", type=int, default=0, metavar="K", help="make the best K again, other seeds")
    how.add_argument("--confirm-seeds", type=int, default=3, metavar="N", help="further seeds (default: 3)")
    how.add_argument("--keep", type=int, default=5, metavar="K", help="best runs that keep their checkpoints")
    where = parser.add_argument_group("where")
    where.add_argument("--max-concurrent", type=int, metavar="N", help="runs at a time (default: what fits)")
    where.add_argument("--workers-per-run", type=int, default=1, help="processes that share each batch")
    where.add_argument("--gpus-per-run", type=float, help="default: 1 per worker where there are GPUs")
    where.add_argument(
        "--lane",
        default="auto",
        help="auto, actors (one process per run), train (a Ray Train run each), warm (workers take run after "
        "run)",
    )
    where.add_argument("--cpus-per-worker", type=float, help="default: the cores here, shared by the runs")
    where.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file of `ray up`: search there")
    where.add_argument("--address", help="of a running Ray cluster (default: Ray on this machine)")
    where.add_argument(
        "--wait", type=float, default=20.0, metavar="MINUTES", help="for machines, at most (default: 20)"
    )
    where.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("STRIATE_STORAGE", "runs")),
        help="folder of studies (default: STRIATE_STORAGE, else runs)",
    )
    where.add_argument("--name", help="name of the study (default: space and scale)")
    where.add_argument("--fresh", action="store_true", help="archive the study of this name, start anew")
    where.add_argument("--no-tracking", action="store_true", help="do not mirror the study in MLflow")
    where.add_argument("--verbose", action="store_true", help="show what Ray writes")
    return parser.parse(arguments)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if parsed.action != "search":
        from hpo.afterwards import report_command, reproduce_command

        return report_command(parsed) if parsed.action == "report" else reproduce_command(parsed)
    if parsed.cluster is not None:
        from hpo.remote import remote_command

        return remote_command(parsed, arguments)
    from hpo.command import search_command

    return search_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
