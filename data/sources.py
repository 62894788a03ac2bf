"""Open whatever the user has: a store, raw mouse folders, zips, or folders of them."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from data.array_files import StoreError
from data.confined import require_folder_path
from data.conversion import ConversionConfig, OnProgress, convert, describe_source
from data.recording import Recording, open_store
from data.sensorium import find_raw
from data.store import finished_sessions, is_store

logger = logging.getLogger(__name__)

_KEY_LENGTH = 16


def default_cache() -> Path:
    """Return where converted recordings are kept: ``$XDG_CACHE_HOME/striate`` or ``~/.cache/striate``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "striate"


def open_recordings(
    paths: Sequence[Path],
    *,
    cache: Path | None = None,
    config: ConversionConfig | None = None,
    on_progress: OnProgress | None = None,
) -> list[Recording]:
    """Open recordings from one store, or from raw ones that are converted once into a cache.

    The cached store belongs to exactly these recordings, by name, size and time of their files: a changed
    file or another set of mice makes another one. Two processes that ask at the same time convert once.

    Args:
        paths: one store; or mouse folders, zips, folders of them.
        cache: folder for converted recordings; ``default_cache()`` if None.
        config: how to store what is converted.
        on_progress: called after every converted trial.

    Returns:
        The recordings in alphabetical order.

    Raises:
        RecordingError: a path is missing, holds no recording, or a broken one.
        StoreError: a broken or unfinished store; several stores, or stores mixed with raw recordings.
        ValueError: a path is an address of object storage.
    """
    for path in paths:
        require_folder_path(path, what="a recording")
    if cache is not None:
        require_folder_path(cache, what="the folder for converted recordings")
    stores = [path for path in paths if _is_any_store(path)]
    if not stores:
        store = _cached_store(paths, cache or default_cache(), config=config, on_progress=on_progress)
        return open_store(store)
    if len(paths) > 1:
        # The ids that say which mice saw the same video hold within one store only.
        raise StoreError(
            f"a store ({stores[0]}) is given together with other recordings, but must be given alone; "
            "convert all of them into one store: python data/convert.py RAW... --to STORE"
        )
    return open_store(stores[0])


def _is_any_store(path: Path) -> bool:
    return path.is_dir() and (is_store(path) or bool(finished_sessions(path)))


def _cached_store(
    paths: Sequence[Path], cache: Path, *, config: ConversionConfig | None, on_progress: OnProgress | None
) -> Path:
    config = config or ConversionConfig()
    raw = find_raw(paths)
    keys = sorted(describe_source(path).key for path in raw)
    identity = repr((keys, config.responses, config.video)).encode()
    store = cache / hashlib.sha256(identity).hexdigest()[:_KEY_LENGTH]
    if not is_store(store):
        logger.info("converting %d recordings once into %s", len(raw), store)
        convert(raw, store, config, on_progress=on_progress)
    return store
