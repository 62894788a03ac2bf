"""What ``data/convert.py`` does once its command line is read."""

import argparse
import logging
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from data.command_line import FAILED, INTERRUPTED
from data.conversion import ConversionConfig, ConversionProgress, convert
from data.recording import open_store
from data.sensorium import find_raw
from data.store import check_store


def convert_command(parsed: argparse.Namespace) -> int:
    """Convert or check as the parsed arguments say; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    columns = (BarColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("left"))
    try:
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            if parsed.check is not None:
                return _check(parsed.check, progress)
            _convert(parsed, progress)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues after the last finished recording")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    _show_store(parsed.to, console)
    return 0


def _convert(parsed: argparse.Namespace, progress: Progress) -> None:
    task = progress.add_task("looking at the files", total=None)

    def show(at: ConversionProgress) -> None:
        progress.update(task, description=at.session, completed=at.done_bytes, total=at.total_bytes)

    config = ConversionConfig(responses=parsed.responses, video=parsed.video)
    convert(find_raw(parsed.raw), parsed.to, config, on_progress=show)


def _check(store: Path, progress: Progress) -> int:
    task = progress.add_task("checking", total=None)
    problems = check_store(
        store, on_file=lambda done, total: progress.update(task, completed=done, total=total)
    )
    for problem in problems:
        progress.console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    count = f"{len(problems) or 'no'} broken file{'' if len(problems) == 1 else 's'}"
    progress.console.print(f"{store}: {count}", highlight=False, soft_wrap=True)
    return FAILED if problems else 0


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
