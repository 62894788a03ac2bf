"""What a build was made for, and in what it differs from what its folder is opened for now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.names import list_differences
from training.run_folder import read_json, write_json


class BuildError(ValueError):
    """A build that cannot be used; the message says what differs and what to do."""


def require_same(path: Path, identity: Mapping[str, Any]) -> None:
    """Write what a build is made for, or compare with what it was made for.

    Raises:
        BuildError: it was made for something else; the message lists the differences.
    """
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_json(path, wanted)
        return
    different = list_differences(read_json(path), wanted)
    if different:
        raise BuildError(
            f"build {path.parent} was made with another {different}. "
            "Use --name for a new build, or the build's own options"
        )
