"""Download public recordings of Sensorium 2023: ``python data/download.py F G --to DIR``."""

import argparse
import logging
import sys
from pathlib import Path

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

from data.http_parts import Download, TransferError
from data.mice import BASE_URL, LICENSE_NOTICE, choose_mice
from data.transfer import Patience, check_space, fetch


def main() -> int:
    """Parse the command line, download, and return the exit status."""
    parser = argparse.ArgumentParser(description="Download public recordings of Sensorium 2023, resuming.")
    parser.add_argument("mice", nargs="+", help="letters A to J, session names, old, new or all")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the zips")
    parser.add_argument(
        "--base-url", default=BASE_URL, help="mirror with the same folders as GIN (default: %(default)s)"
    )
    parser.add_argument(
        "--complete-old",
        action="store_true",
        help="take old mice from their later release, whose test tiers have responses too",
    )
    parser.add_argument(
        "--attempts", type=int, default=8, help="attempts in a row that bring nothing (default: %(default)s)"
    )
    arguments = parser.parse_args()
    console = Console(stderr=True)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=console)])
    try:
        mice = choose_mice(arguments.mice)
        patience = Patience(attempts=arguments.attempts)
        downloads = [
            Download(
                url=mouse.zip_url(arguments.base_url, complete=arguments.complete_old),
                path=arguments.to / f"{mouse.session}.zip",
                expected_bytes=mouse.expected_zip_bytes,
                sha256=mouse.zip_sha256,
            )
            for mouse in mice
        ]
        print(LICENSE_NOTICE, flush=True)
        arguments.to.mkdir(parents=True, exist_ok=True)
        check_space(downloads, patience=patience)
    except (ValueError, TransferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = _fetch_all(downloads, patience, console)
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    print(f"{len(downloads) - len(failed)} of {len(downloads)} recordings are complete in {arguments.to}")
    if not failed:
        print(f"next: python data/convert.py {arguments.to} --to STORE")
    return 1 if failed else 0


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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
