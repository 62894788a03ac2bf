"""What ``data/download.py`` does once its command line is read."""

import argparse
import logging
import sys

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from data.command_line import DONE, FAILED
from data.http_parts import Download, TransferError
from data.mice import BASE_URL, LICENSE_NOTICE, choose_mice
from data.transfer import Patience, check_space, fetch


def download_command(parsed: argparse.Namespace) -> int:
    """Download as the parsed arguments say; return the exit code."""
    console = Console(stderr=True)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=console)])
    try:
        mice = choose_mice(parsed.mice)
        patience = Patience(attempts=parsed.attempts)
        downloads = [
            Download(
                url=mouse.zip_url(parsed.base_url or BASE_URL, complete=parsed.complete_old),
                path=parsed.to / f"{mouse.session}.zip",
                expected_bytes=mouse.expected_zip_bytes,
                sha256=mouse.zip_sha256,
            )
            for mouse in mice
        ]
        print(LICENSE_NOTICE, flush=True)
        parsed.to.mkdir(parents=True, exist_ok=True)
        check_space(downloads, patience=patience)
    except (ValueError, TransferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    failed = _fetch_all(downloads, patience, console)
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    print(f"{len(downloads) - len(failed)} of {len(downloads)} recordings are complete in {parsed.to}")
    if not failed:
        print(f"next: python data/convert.py {parsed.to} --to STORE")
    return FAILED if failed else DONE


def _fetch_all(downloads: list[Download], patience: Patience, console: Console) -> list[str]:
    """Fetch one after the other; returns what went wrong, after all have been tried."""
    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for download in downloads:
            task = progress.add_task(download.path.stem, total=None)
            try:
                fetch(
                    download,
                    patience=patience,
                    on_progress=lambda have, total, task=task: progress.update(  # type: ignore[misc]
                        task, completed=have, total=total
                    ),
                )
            except (TransferError, OSError) as error:
                failed.append(str(error))
    return failed
