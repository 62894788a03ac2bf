"""The recordings that a command is given, or two small simulated mice where it is given none."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.confined import require_folder_path
from data.experiment import SimulationConfig
from data.recording import Recording
from data.simulation import simulate
from data.sources import open_recordings


def given_recordings(sources: Sequence[Path] | None, root: Path) -> tuple[list[Recording], str]:
    """Open recordings, or simulate two small mice once where none are given.

    Args:
        sources: raw mouse folders, zips, folders of these, or a store.
        root: where converted and simulated recordings are kept.

    Returns:
        The recordings, and where they come from, in words.

    Raises:
        ValueError: one of these is an address of object storage; and what ``open_recordings`` raises.
    """
    require_folder_path(root, what="--root or STRIATE_STORAGE")
    if sources:
        return open_recordings(sources, cache=root / "cache"), ", ".join(map(str, sources))
    config = SimulationConfig.for_scale("demo")
    raw = root / f"recordings-demo-{_key(config)}"
    folders = simulate(raw, config)
    return open_recordings(folders, cache=root / "cache"), f"simulated (none were given), in {raw}"


def _key(config: SimulationConfig) -> str:
    """Return what tells the recordings of one version from those of another, which stay where they are."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]
