"""Recordings on the machine's own disk: copied once per machine from shared storage, checked by their hashes.

Frames are read at random and again every epoch; from shared storage each page would cross the network.
``STRIATE_LOCAL`` names the folder for copies; without it a store is read where it is.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.array_files import HEADER_BYTES, FileEntry, StoreError, check_size, npy_header
from data.store import MANIFEST, SESSION_FILE, is_store, read_manifest

logger = logging.getLogger(__name__)

VARIABLE = "STRIATE_LOCAL"
_BLOCK = 2**22
_KEY_LENGTH = 16


def local_store(store: Path, *, folder: Path | None = None) -> Path:
    """Return where this machine should read a store: a checked copy, or the store itself.

    Processes that ask at the same time copy once. A copy that was interrupted is made anew; one that is there
    was checked when it was made and belongs to exactly this store's content.

    Args:
        store: on storage that every machine reaches.
        folder: for copies; what ``STRIATE_LOCAL`` names if None, and no copy without it.

    Raises:
        StoreError: a file differs from the manifest, twice in a row.
        OSError: the disk is full.
    """
    folder = folder or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if folder is None or not is_store(store):
        return store
    content = (store / MANIFEST).read_bytes()
    copy = folder / "stores" / hashlib.sha256(content).hexdigest()[:_KEY_LENGTH]
    if is_store(copy):
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with _locked(copy.with_name(f"{copy.name}.lock")):
        if not is_store(copy):
            _copy_store(store, copy)
    return copy


def _copy_store(store: Path, copy: Path) -> None:
    manifest = read_manifest(store)
    partial = copy.with_name(f"{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    files: list[tuple[Path, FileEntry | None]] = [(Path(manifest.trials_table), manifest.trials_file)]
    for session, entry in manifest.sessions.items():
        files += [(Path(session) / name, file) for name, file in entry.files.items()]
        files.append((Path(session) / SESSION_FILE, None))
    needed = sum(0 if file is None else file.size for _, file in files)
    free = shutil.disk_usage(copy.parent).free
    if needed > free:
        raise OSError(
            28,
            f"{copy.parent} has {free} bytes free, but a copy of {store} needs {needed}: free some, or unset "
            f"{VARIABLE} to read the recordings where they are",
        )
    logger.info("copying %s (%.1f GB) to %s", store, needed / 1e9, copy)
    for name, file in files:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        if file is None:
            shutil.copyfile(store / name, partial / name)
        else:
            _copy_checked(store / name, partial / name, file)
    # Last: it makes the folder a store.
    shutil.copyfile(store / MANIFEST, partial / MANIFEST)
    partial.rename(copy)


def _copy_checked(source: Path, target: Path, entry: FileEntry) -> None:
    """Copy a file and hash what goes by; once more if it differs, for what a network did to it."""
    for is_last in (False, True):
        check_size(source, entry)
        problem = _copy(source, target, entry)
        if problem is None:
            return
        if is_last:
            raise StoreError(f"{source} {problem} by the manifest, read twice; convert the recordings again")


def _copy(source: Path, target: Path, entry: FileEntry) -> str | None:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        if entry.is_array:
            header = reader.read(HEADER_BYTES)
            writer.write(header)
            if header != npy_header(np.dtype(entry.dtype), entry.shape):
                return f"has a header that does not say {entry.dtype} {entry.shape}, but must"
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
    found = digest.hexdigest()
    return None if found == entry.sha256 else f"has sha256 {found}, but must have {entry.sha256}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
