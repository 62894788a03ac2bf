"""Runs that hang: a process that finishes no epoch for too long writes down where it is, and ends itself."""

import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from training.results import EpochReport

HUNG_FILE = "hung.txt"
"""What every thread of the process was doing when it was given up."""


def why_it_hung(folder: Path) -> str | None:
    """Return in words that a run's process has given itself up; None when it has not."""
    path = folder / HUNG_FILE
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        # "Timeout (0:30:00)!" is the first line of Python's own dump.
        waited = file.readline().strip().removeprefix("Timeout (").removesuffix(")!")
    return f"it finished no epoch for {waited} (h:mm:ss) and was given up; where it was stands in {path}"


class HangWatch:
    """Ends this process when an epoch takes too long.

    The clock is Python's ``faulthandler``: a thread of the interpreter's own, which also acts when the run
    hangs in a library that does not let other threads run. A process that the system has stopped is not
    ended.

    Args:
        folder: the run's folder.
        limit_seconds: from one finished epoch to the next, and from the start to the first; None watches
            nothing.
    """

    def __init__(self, folder: Path, *, limit_seconds: float | None) -> None:
        self._folder, self._limit = folder, limit_seconds
        self._file: TextIO | None = None

    def __enter__(self) -> "HangWatch":
        if self._limit is not None:
            self._file = (self._folder / HUNG_FILE).open("w", encoding="utf-8")
            self._wind()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            (self._folder / HUNG_FILE).unlink(missing_ok=True)

    def between(self, on_epoch: Callable[[EpochReport], bool]) -> Callable[[EpochReport], bool]:
        """Return the callback with the clock wound after each epoch; waiting for an answer does not count."""
        if self._limit is None:
            return on_epoch

        def watched(report: EpochReport) -> bool:
            faulthandler.cancel_dump_traceback_later()
            try:
                return on_epoch(report)
            finally:
                self._wind()

        return watched

    def _wind(self) -> None:
        assert self._limit is not None
        assert self._file is not None
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._file)
