"""Train one run: ``python training/train.py vivit --recordings DIR``."""

import argparse
import logging
import sys
from pathlib import Path

EXAMPLES = """examples:
  python training/train.py vivit --recordings DIR
  python training/train.py factorized --recordings DIR --set model.channels=16,32 --set epochs=50 --seed 7
  torchrun --nproc-per-node 2 training/train.py v1fm --recordings DIR
  python training/train.py vivit --recordings DIR --workers 4 --gpus-per-worker 1      on Ray
  python training/train.py vivit --recordings DIR --dry-run          what it takes, without training
  python training/train.py --resume runs/vivit-42
  python training/train.py --sync-tracking

exit codes: 0 finished, 1 the run failed or does not fit into memory (the reason is printed and tracked), or
not everything reached MLflow (--sync-tracking); 2 wrong use, 130 interrupted (the same command goes on)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Train one run from its published recipe, score it on the hold-out fold, track it.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", nargs="?", help="model family: factorized, gru, vivit, v1fm, dwiseneuro")
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--recordings",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="raw mouse folders, zips, folders of these, or a store",
    )
    what.add_argument(
        "--scale", choices=("full", "demo"), default="full", help="published size, or a small one"
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a hyperparameter by dotted name",
    )
    what.add_argument("--seed", type=int, help="of parameters, clips and noise")
    what.add_argument(
        "--select-on",
        choices=("holdout", "oracle"),
        default="holdout",
        help="what early stopping looks at; oracle is the paper's protocol, and then no longer grades",
    )
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, memory, FLOPs and steps of the run, and end",
    )
    how = parser.add_argument_group("on how many devices")
    how.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes on a Ray cluster that share each batch (default: this process, without Ray; "
        "RAY_ADDRESS names a cluster, otherwise Ray starts on this machine)",
    )
    how.add_argument(
        "--gpus-per-worker", type=int, metavar="G", help="default: 1 where this machine has GPUs, else 0"
    )
    how.add_argument(
        "--wait-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="with --workers: fail once the cluster had no room for them for so long in all (default: 600)",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    where.add_argument("--name", help="name of the run (default: model and seed)")
    where.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, exactly")
    where.add_argument("--cache", type=Path, help="for converted recordings (default: RUNS/cache)")
    where.add_argument("--experiment", default="single-runs", help="MLflow experiment (default: single-runs)")
    where.add_argument("--no-tracking", action="store_true", help="do not record the run in MLflow")
    where.add_argument(
        "--sync-tracking", action="store_true", help="send what could not be sent to MLflow earlier, and end"
    )
    parsed = parser.parse(arguments)
    if not parsed.sync_tracking and parsed.resume is None and (parsed.model is None or not parsed.recordings):
        parser.error("a model and --recordings are needed, for example: vivit --recordings DIR")
    if parsed.workers is None and parsed.gpus_per_worker is not None:
        parser.error("--gpus-per-worker needs --workers")
    return parsed


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from training.command import run_command

    return run_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
