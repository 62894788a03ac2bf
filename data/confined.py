"""Names that come from a file or a command line and become paths: they must not lead anywhere else."""

import json
import re
from pathlib import Path
from typing import Any

_MAX_CHARACTERS = 200


def require_name(name: object, *, what: str, error: type[ValueError] = ValueError) -> str:
    """Return a name that is a single folder or file.

    Args:
        name: what was read.
        what: what it is, for the message (``session``, ``--name``).
        error: raised if it is something else.
    """
    if _is_part(name):
        return str(name)
    raise error(
        f"{what} is {_shown(name)}, but must be a name: no slash, no '..', no control characters, "
        f"1 to {_MAX_CHARACTERS} characters"
    )


def require_inside(name: object, *, what: str, error: type[ValueError] = ValueError) -> str:
    """Return a relative path that stays inside the folder it is joined to.

    Args:
        name: what was read; forward slashes only.
        what: what it is, for the message.
        error: raised if it leads out.
    """
    if isinstance(name, str) and all(_is_part(part) for part in name.split("/")):
        return name
    raise error(
        f"{what} is {_shown(name)}, but must be a path inside its folder: relative, without '..', "
        "backslashes and control characters"
    )


def require_folder_path(path: Path, *, what: str) -> Path:
    """Return a path, unless it is an address of object storage: as a path that is a folder named ``s3:``.

    Args:
        path: from a command line.
        what: what it is, for the message (``--root``).

    Raises:
        ValueError: it has a scheme.
    """
    scheme = path.parts[0] if path.parts else ""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", scheme):
        raise ValueError(
            f"{what} is {scheme}//{'/'.join(path.parts[1:])}, but must be a folder: mount the bucket, and "
            "give the folder it is mounted on (docs/operations.md, Storage)"
        )
    return path


def parse_json(text: str | bytes) -> Any:
    """Read JSON that nobody vouches for.

    Raises:
        ValueError: it is not JSON, or nested so deeply that reading it would end the process.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def read_small(path: Path, *, max_bytes: int = 2**27) -> bytes:
    """Return a file's content, unless it is absurdly large for what it should hold.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, but must have at most {max_bytes}")
    return path.read_bytes()


def _is_part(part: object) -> bool:
    return (
        isinstance(part, str)
        and 0 < len(part) <= _MAX_CHARACTERS
        and part not in (".", "..")
        and part.isprintable()
        and not set(part) & set("/\\")
    )


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
