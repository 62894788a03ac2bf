"""Convert raw recordings to a store, or check one: ``python data/convert.py RAW... --to STORE``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from data.conversion import ConversionConfig, ConversionProgress, convert
from data.recording import open_store
from data.sensorium import find_raw
from data.store import check_store


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert raw recordings to a store, or check a store.")
    parser.add_argument("raw", nargs="*", type=Path, help="mouse folders, zips, or folders of them")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="STORE", help="store to write; an existing one is extended")
    what.add_argument("--check", type=Path, metavar="STORE", help="verify sizes and hashes of all files")
    parser.add_argument(
        "--responses",
        choices=("auto", "float16", "float32"),
        default="auto",
        help="element type of the responses; auto is float16 where its range suffices (default)",
    )
    parser.add_argument("--video", choices=("uint8", "float16"), default="uint8", help="default: uint8")
    chosen = parser.parse_args(arguments)
    if (chosen.to is None) == bool(chosen.raw):
        parser.error("give RAW... with --to STORE, or --check STORE alone")
    return chosen


def _convert(chosen: argparse.Namespace, progress: Progress) -> None:
    task = progress.add_task("looking at the files", total=None)

    def show(at: ConversionProgress) -> None:
        progress.update(task, description=at.session, completed=at.done_bytes, total=at.total_bytes)

    config = ConversionConfig(responses=chosen.responses, video=chosen.video)
    convert(find_raw(chosen.raw), chosen.to, config, on_progress=show)


def _check(store: Path, progress: Progress) -> int:
    task = progress.add_task("checking", total=None)
    problems = check_store(
        store, on_file=lambda done, total: progress.update(task, completed=done, total=total)
    )
    for problem in problems:
        progress.console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    count = f"{len(problems) or 'no'} broken file{'' if len(problems) == 1 else 's'}"
    progress.console.print(f"{store}: {count}", highlight=False, soft_wrap=True)
    return 1 if problems else 0


def _show_store(store: Path, console: Console) -> None:
    table = Table(
        Column("session", overflow="fold"),
        "neurons",
        "trials",
        "with responses",
        "videos",
        "shared with others",
    )
    recordings = open_store(store)
    videos = {recording.session: {trial.video_id for trial in recording.trials} for recording in recordings}
    for recording in recordings:
        own = videos[recording.session]
        others = [ids for session, ids in videos.items() if session != recording.session]
        num_labelled = sum(trial.has_responses for trial in recording.trials)
        counts = (len(recording.neurons.ids), len(recording.trials), num_labelled, len(own))
        shared = len(own & set().union(*others))
        table.add_row(recording.session, *(str(count) for count in (*counts, shared)))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert or check; return the exit code."""
    chosen = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    columns = (BarColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("left"))
    try:
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            if chosen.check is not None:
                return _check(chosen.check, progress)
            _convert(chosen, progress)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues after the last finished recording")
        return 130
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    _show_store(chosen.to, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
