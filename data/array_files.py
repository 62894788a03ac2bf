"""Array files: plain .npy written row by row with its checksum, and mapped only when its size is right."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped

# Fixed, so that the number of rows can be filled in when the last one has been written.
HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"


class StoreError(ValueError):
    """A store that cannot be opened or written; the message names file, found, expected and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What the manifest knows of one file.

    Attributes:
        size: length of the file in bytes.
        sha256: of the whole file; of an array file, of what follows its 128 header bytes, because the header
            (which ``dtype`` and ``shape`` determine) is written last.
        dtype: numpy's name of the element type; empty if the file is not an array.
        shape: of the array; empty if the file is not an array.
    """

    size: int
    sha256: str
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def is_array(self) -> bool:
        """Whether the file is a .npy array."""
        return bool(self.dtype)


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the 128 bytes in front of a C-ordered array (numpy's format 1.0, padded with spaces)."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    text = repr(fields).encode("ascii")
    num_characters = HEADER_BYTES - len(_MAGIC) - 2
    assert len(text) < num_characters
    return _MAGIC + num_characters.to_bytes(2, "little") + text.ljust(num_characters - 1) + b"\n"


class ArrayWriter:
    """Write a .npy file row by row in one pass, hashing what goes by.

    Use as a context manager, then ask for ``entry``; without a normal exit the header stays zero, so that
    nobody can take the file for an array.
    """

    def __init__(self, path: Path, *, dtype: str, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.row_shape = row_shape
        self.num_rows = 0
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def append(self, rows: Shaped[np.ndarray, "..."]) -> int:
        """Write rows and return the number of the first of them."""
        assert rows.dtype == self.dtype, (rows.dtype, self.dtype)
        assert rows.shape[1:] == self.row_shape, (rows.shape, self.row_shape)
        first = self.num_rows
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._hash.update(data)
        self._file.write(data)
        self.num_rows += len(rows)
        return first

    def entry(self) -> FileEntry:
        """Return what the manifest has to know; complete after a normal exit."""
        shape = (self.num_rows, *self.row_shape)
        size = HEADER_BYTES + int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        return FileEntry(size=size, sha256=self._hash.hexdigest(), dtype=self.dtype.name, shape=shape)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self._file.seek(0)
            self._file.write(npy_header(self.dtype, (self.num_rows, *self.row_shape)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def write_array(path: Path, array: Shaped[np.ndarray, "..."]) -> FileEntry:
    """Write one array and return its entry."""
    with ArrayWriter(path, dtype=array.dtype.name, row_shape=array.shape[1:]) as writer:
        writer.append(array)
    return writer.entry()


def write_bytes(path: Path, content: bytes) -> FileEntry:
    """Write a whole file under a temporary name, flush it to disk, then give it its name."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_folder(path.parent)
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_size(path: Path, entry: FileEntry) -> None:
    """Refuse a file that is missing, too short or too long; reads nothing.

    Touching the mapped pages of a truncated file kills the process (SIGBUS), so this comes before mapping.

    Raises:
        StoreError: the file's size is not the manifest's.
    """
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing; restore the file or convert its recording again into a new store"
        ) from None
    if found != entry.size:
        raise StoreError(
            f"{path} has {found} bytes, but must have {entry.size} by the manifest; "
            "restore the file or convert its recording again into a new store"
        )


def check_hash(path: Path, entry: FileEntry) -> None:
    """Refuse a file whose content changed since it was written; reads all of it.

    Raises:
        StoreError: size, array header or sha256 differ from the manifest's.
    """
    check_size(path, entry)
    with path.open("rb") as file:
        if entry.is_array and file.read(HEADER_BYTES) != npy_header(np.dtype(entry.dtype), entry.shape):
            raise StoreError(
                f"{path} has an array header that does not say {entry.dtype} {entry.shape} as the manifest "
                "does; restore the file or convert its recording again into a new store"
            )
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise StoreError(
            f"{path} has sha256 {found}, but must have {entry.sha256} by the manifest; "
            "restore the file or convert its recording again into a new store"
        )


def map_array(path: Path, entry: FileEntry) -> Shaped[np.ndarray, "..."]:
    """Map an array read-only; processes that map the same file share its pages.

    Raises:
        StoreError: the file's size or header is not the manifest's.
    """
    check_size(path, entry)
    if 0 in entry.shape:
        return np.zeros(entry.shape, dtype=entry.dtype)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StoreError(
            f"{path} cannot be mapped as an array ({error}); "
            "restore the file or convert its recording again into a new store"
        ) from error
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        raise StoreError(
            f"{path} holds {array.dtype.name} {array.shape}, but must hold {entry.dtype} {entry.shape} "
            "by the manifest; restore the file or convert its recording again into a new store"
        )
    # Slicing a plain view costs a fifth of slicing numpy's memmap class; the view keeps the map alive.
    plain: np.ndarray = array.view(np.ndarray)
    return plain
