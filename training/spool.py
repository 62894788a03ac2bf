"""Tracking events on disk: written before they are sent, kept until they have arrived.

A run appends one JSON line per event to ``tracking.jsonl`` in its folder, which takes microseconds and needs
no server. ``tracking.sent`` holds how many bytes of it have arrived. A crash between sending and noting it
sends an event again, so events carry their own time and are written such that twice is the same as once.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.confined import parse_json

EVENTS_FILE = "tracking.jsonl"
SENT_FILE = "tracking.sent"


class Spool:
    """The events of one run.

    Args:
        folder: the run's folder; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._events = folder / EVENTS_FILE
        self._sent = folder / SENT_FILE

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event.

        Raises:
            OSError: the disk is full; the events before it are intact.
        """
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._events.open("ab") as file:
            # A line cut short by a crash must not swallow this one.
            if file.tell() and not self._ends_with_newline():
                file.write(b"\n")
            file.write(line)

    def _ends_with_newline(self) -> bool:
        with self._events.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    @property
    def sent(self) -> int:
        """Bytes that have arrived."""
        try:
            return int(self._sent.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def is_empty(self) -> bool:
        """Whether everything has arrived."""
        return not self._events.exists() or self._events.stat().st_size <= self.sent

    def first(self) -> dict[str, Any]:
        """Return the first event, which names the run and its server."""
        with self._events.open("rb") as file:
            event: dict[str, Any] = json.loads(file.readline())
        return event

    def unsent(self, *, limit: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield up to ``limit`` waiting events, each with the offset to mark when it has arrived."""
        if not self._events.exists():
            return
        with self._events.open("rb") as file:
            file.seek(self.sent)
            for _ in range(limit):
                line = file.readline()
                if not line.endswith(b"\n"):
                    return
                try:
                    event = parse_json(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "kind" in event:
                    yield event, file.tell()

    def mark_sent(self, offset: int) -> None:
        """Note that everything before ``offset`` has arrived."""
        temporary = self._sent.with_suffix(".tmp")
        temporary.write_text(str(offset))
        temporary.replace(self._sent)
