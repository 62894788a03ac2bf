"""Too little memory: a process that needs more than it may ends itself; its run goes on in smaller parts."""

import os
import threading
from pathlib import Path

from training.run_folder import read_json, write_json

MEMORY_FILE = "micro_batch.json"
"""Says with how many clips at once the run had too little memory."""


def too_many_clips(folder: Path) -> int | None:
    """Return with how many clips at once a run had too little memory; None when it never had."""
    path = folder / MEMORY_FILE
    return int(read_json(path)["too_many"]) if path.exists() else None


class MemoryWatch:
    """Ends this process when it needs more memory than it may; the run's next attempt computes fewer clips.

    Without it, Ray's or the kernel's killer acts, and may take other runs.

    Args:
        folder: the run's folder.
        clips: computed at once now.
        limit_bytes: resident memory of this process; None watches nothing.
    """

    def __init__(self, folder: Path, *, clips: int, limit_bytes: int | None) -> None:
        self._folder, self._clips, self._limit = folder, clips, limit_bytes
        self._done = threading.Event()

    def __enter__(self) -> "MemoryWatch":
        if self._limit is not None:
            threading.Thread(target=self._watch, name="memory", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while self._limit is not None and not self._done.is_set():
            if resident_bytes() > self._limit:
                write_json(self._folder / MEMORY_FILE, {"too_many": self._clips})
                os._exit(137)
            self._done.wait(0.5)


def resident_bytes() -> int:
    """Return this process's resident memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
