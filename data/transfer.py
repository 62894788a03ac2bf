"""Download large zips over HTTP: resumed after any interruption, checked, and never mistaken for complete."""

import fcntl
import hashlib
import io
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.http_parts import (
    Download,
    InterruptedAttempt,
    OnProgress,
    TransferError,
    forget_source,
    num_bytes,
    receive,
    remote_size,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on when the network does not.

    Attributes:
        attempts: attempts in a row that bring nothing new before giving up.
        first_wait_seconds: wait after the first of them; it doubles from one to the next.
        longest_wait_seconds: no wait is longer, whatever the server asks for.
        timeout_seconds: silence on a connection that ends it.
    """

    attempts: int = 8
    first_wait_seconds: float = 2.0
    longest_wait_seconds: float = 120.0
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, but must be at least 1")

    def wait_seconds(self, failures: int, asked: float) -> float:
        """Return how long to wait after so many failures in a row; at least what the server asked for."""
        wait = self.first_wait_seconds * 2.0 ** min(failures - 1, 30)
        return min(max(wait, asked), self.longest_wait_seconds)


def check_space(downloads: Sequence[Download], *, patience: Patience, free_bytes: int | None = None) -> int:
    """Refuse to start what the disk cannot hold; asks the server for the sizes.

    Args:
        downloads: into one folder, which exists.
        patience: its timeout holds for each question.
        free_bytes: free space; by default the disk is asked.

    Returns:
        How many bytes are still to come.
    """
    missing = 0
    for download in downloads:
        if download.path.exists():
            continue
        total = remote_size(download.url, patience.timeout_seconds) or download.expected_bytes
        missing += max(0, total - num_bytes(download.partial))
    folder = downloads[0].path.parent
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if missing > free:
        raise TransferError(
            f"{folder} has {free / 1e9:.1f} GB free, but {missing / 1e9:.1f} GB are to come; "
            "make room, choose fewer mice or another disk"
        )
    return missing


def fetch(
    download: Download,
    *,
    patience: Patience,
    on_progress: OnProgress,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Download a zip, going on where an earlier attempt or run stopped.

    A complete file is left as it is. Every byte of a partial file comes from the same version of the file, as
    far as the server can tell.

    Raises:
        TransferError: the server has no such zip or stays unreachable, or what came is not what was expected.
    """
    if download.path.exists():
        _check_complete(download, download.path, None)
        on_progress(download.path.stat().st_size, download.path.stat().st_size)
        return download.path
    with _locked(download.partial) as file:
        total = _fetch_all(download, file, patience=patience, on_progress=on_progress, sleep=sleep)
        file.flush()
        os.fsync(file.fileno())
        _check_complete(download, download.partial, total)
        download.partial.replace(download.path)
    forget_source(download)
    return download.path


def _fetch_all(
    download: Download,
    file: io.BufferedWriter,
    *,
    patience: Patience,
    on_progress: OnProgress,
    sleep: Callable[[float], object],
) -> int | None:
    failures, most = 0, num_bytes(download.partial)
    while True:
        try:
            return receive(download, file, timeout_seconds=patience.timeout_seconds, on_progress=on_progress)
        except InterruptedAttempt as interruption:
            size = file.tell()
            # A server that always starts again brings the same bytes for ever: only a new record counts.
            failures = 1 if size > most else failures + 1
            most = max(most, size)
            if interruption.from_zero:
                file.truncate(0)
            if failures >= patience.attempts:
                raise TransferError(
                    f"{download.url}: gave up after {failures} attempts without progress ({interruption}); "
                    f"{num_bytes(download.partial)} bytes are kept, run the same command to go on"
                ) from interruption
            wait = patience.wait_seconds(failures, interruption.wait_seconds)
            logger.warning("%s: %s; trying again in %.0f s", download.path.name, interruption, wait)
            sleep(wait)


def _check_complete(download: Download, path: Path, total: int | None) -> None:
    """Refuse a file of the wrong size or content; it is set aside, so that the next run starts again."""
    size = path.stat().st_size
    problem = ""
    if total is not None and size != total:
        problem = f"has {size} bytes, but must have {total}"
    elif not zipfile.is_zipfile(path):
        problem = f"has {size} bytes, but is not a complete zip"
    elif download.sha256 is not None and (found := _sha256(path)) != download.sha256:
        problem = f"has sha256 {found}, but must have {download.sha256}"
    if not problem:
        return
    if path == download.path:
        raise TransferError(f"{path} {problem}; remove it and run the same command to download it again")
    rejected = download.path.with_name(f"{download.path.name}.rejected")
    path.replace(rejected)
    forget_source(download)
    raise TransferError(
        f"{download.url} {problem}; it is kept as {rejected}. Run the same command to download it again, "
        f"or rename it to {download.path.name} if you trust it"
    )


@contextmanager
def _locked(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a partial file for this process alone."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferError(f"{path} is being downloaded by another process; wait for it") from None
        yield file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
