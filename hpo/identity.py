"""What a study was made for, and in what it differs from what it is opened for now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.names import list_differences
from training.run_folder import read_json, write_json

IDENTITY_FILE = "study.json"
DATABASE_FILE = "study.db"
_SQLITE = b"SQLite format 3\0"
_CHANGED_BY_UPDATES = frozenset({"recordings", "space", "base"})


class StudyError(ValueError):
    """A study that cannot be used; the message says what differs and what to do."""


def require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what a study is made for, or compare with what it was made for.

    Raises:
        StudyError: it was made for something else; the message lists the differences.
    """
    _require_database(folder / DATABASE_FILE)
    path = folder / IDENTITY_FILE
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        stored = read_json(path)
    except ValueError as error:
        raise StudyError(f"{error}; use --fresh to archive the study and start anew") from error
    different = list_differences(stored, wanted)
    if different:
        raise StudyError(
            f"study {folder} was made with another {different}. "
            "Use --fresh to archive it and start anew, or --name for a new study"
        )


def is_outdated(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether a study was made by the same command with another version of the code.

    Updates change recipes, ranges and what is simulated; nobody but a user changes seed, selection, pruning
    or pinned values, or the names of the sessions.
    """
    path = folder / IDENTITY_FILE
    if not path.exists():
        return False
    try:
        stored = read_json(path)
    except ValueError:
        return False
    wanted = json.loads(json.dumps(identity))
    changed = {key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key)}
    sessions = [set(each.get("recordings") or {}) for each in (stored, wanted)]
    return bool(changed) and changed <= _CHANGED_BY_UPDATES and sessions[0] == sessions[1]


def _require_database(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        start = file.read(len(_SQLITE))
    if start != _SQLITE:
        raise StudyError(f"{path} is not a SQLite database, but must be one: restore it, or use --fresh")
