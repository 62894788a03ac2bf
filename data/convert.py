"""Convert raw recordings to a store, or check one: ``python data/convert.py RAW... --to STORE``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from data.conversion import ConversionConfig, convert
from data.recording import open_store
from data.sensorium import find_raw
from data.store import check_store


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert or check; return the exit code."""
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
        parser.error("give RAW... with --to STORE, or only --check STORE")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    columns = (BarColumn(), TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    try:
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            task = progress.add_task("looking at the files", total=None)
            if chosen.check is not None:
                problems = check_store(
                    chosen.check,
                    on_file=lambda done, total: progress.update(
                        task, description="checking", completed=done, total=total
                    ),
                )
            else:
                convert(
                    find_raw(chosen.raw),
                    chosen.to,
                    ConversionConfig(responses=chosen.responses, video=chosen.video),
                    on_progress=lambda at: progress.update(
                        task, description=at.session, completed=at.done_bytes, total=at.total_bytes
                    ),
                )
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues after the last finished recording")
        return 130
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    if chosen.check is not None:
        for problem in problems:
            console.print(problem, style="red", markup=False, highlight=False)
        console.print(f"{chosen.check}: {len(problems) or 'no'} broken file{'s' * (len(problems) != 1)}")
        return 1 if problems else 0
    table = Table("session", "neurons", "trials", "with responses", "videos", "shared with others")
    recordings = open_store(chosen.to)
    videos = {recording.session: {trial.video_id for trial in recording.trials} for recording in recordings}
    for recording in recordings:
        others = set().union(*(ids for session, ids in videos.items() if session != recording.session))
        counts = (
            len(recording.neurons.ids),
            len(recording.trials),
            sum(trial.has_responses for trial in recording.trials),
            len(videos[recording.session]),
            len(videos[recording.session] & others),
        )
        table.add_row(recording.session, *(str(count) for count in counts))
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
