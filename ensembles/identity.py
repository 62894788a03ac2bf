"""What a build was made for, and in what it differs from what its folder is opened for now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.names import differences
from training.run_folder import read_json, write_json

_SHOWN = 4


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
    different = differences(read_json(path), wanted)
    if different:
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise BuildError(
            f"build {path.parent} was made with another {'; '.join(different[:_SHOWN])}{more}. "
            "Use --name for a new build, or the build's own options"
        )
