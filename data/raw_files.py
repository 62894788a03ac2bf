"""The files of a raw recording, in a folder or inside a zip, and .npy arrays read from them without trust."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from data.recording import RecordingError

_MAX_HEADER_BYTES = 10_000
_MOUSE_FILE = re.compile(
    r"(?P<root>(?:.*/)?)(?:data/(?:videos|responses|behavior|pupil_center)|meta/(?:trials|neurons))/[^/]+"
)


class FolderFiles:
    """The files of an unpacked mouse folder; hidden ones (.DS_Store, ._0.npy) are left out.

    Attributes:
        path: the folder, for messages.
        session: the recording's name: its folder's.
        sizes: bytes of every file by its name inside the folder, with forward slashes.
        problems: what is wrong with the container itself; of a folder nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = path.resolve().name
        self.problems: list[str] = []
        self.sizes = {
            file.relative_to(path).as_posix(): file.stat().st_size
            for folder in ("data", "meta")
            for file in sorted((path / folder).rglob("*"))
            if not file.name.startswith(".") and file.is_file()
        }

    def open(self, name: str) -> io.BufferedIOBase:
        """Open one file for reading."""
        return (self.path / name).open("rb")


class ZipFiles:
    """The files of a mouse inside a zip, as downloaded; attributes as of ``FolderFiles``.

    Travels between processes as its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise RecordingError(
                f"{path} cannot be read as a zip ({error}); download it again: python data/download.py"
            ) from error
        problem_of = {member.filename: _member_problem(member) for member in self._zip.infolist()}
        self.problems = [problem for problem in problem_of.values() if problem is not None]
        members = [
            member
            for member in self._zip.infolist()
            if problem_of[member.filename] is None and not _is_clutter(member.filename)
        ]
        root = _find_root(path, [member.filename for member in members])
        self.session = root.rstrip("/").rpartition("/")[2] or path.stem
        self._names: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        for member in members:
            if member.filename.startswith(root) and not member.is_dir():
                name = member.filename.removeprefix(root)
                if name in self.sizes:
                    self.problems.append(f"{member.filename} is in the zip twice, but must be there once")
                self._names[name] = member.filename
                self.sizes[name] = member.file_size

    def open(self, name: str) -> io.BufferedIOBase:
        """Open one member for reading; its checksum is verified when the last byte is read."""
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return cast(zipfile.ZipExtFile, self._zip.open(self._names[name]))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}


RawFiles = FolderFiles | ZipFiles


def open_files(path: Path) -> RawFiles:
    """Open a mouse folder or zip.

    Raises:
        RecordingError: there is no such path, or the zip is damaged or holds no mouse.
    """
    if path.is_dir():
        return FolderFiles(path)
    if not path.exists():
        raise RecordingError(f"{path} does not exist, but must be a mouse folder or the zip of one")
    return ZipFiles(path)


def is_mouse_folder(path: Path) -> bool:
    """Tell whether a folder looks like a mouse's, complete or not."""
    return (path / "meta" / "trials").is_dir() or (path / "data" / "responses").is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int

    @property
    def num_bytes(self) -> int:
        """Length of the whole file."""
        size = self.offset
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return size + count


def read_header(files: RawFiles, name: str) -> NpyHeader:
    """Read and judge the header of one .npy file; touches no data.

    Raises:
        RecordingError: not a plain array file, or its size is not what its header promises.
    """
    with _reading(files, name) as file:
        return _parse_header(file, name, files.sizes[name])


def read_npy(files: RawFiles, name: str) -> Shaped[np.ndarray, "..."]:
    """Read one .npy file; never unpickles, and allocates nothing the file does not hold.

    Raises:
        RecordingError: see ``read_header``; or the data are damaged (zip checksum).
    """
    with _reading(files, name) as file:
        header = _parse_header(file, name, files.sizes[name])
        content = bytearray(header.num_bytes - header.offset)
        view, position = memoryview(content), 0
        while position < len(content):
            count = file.readinto(view[position:])
            if not count:
                raise RecordingError(f"{name} ends after {position} of {len(content)} bytes of data")
            position += count
    shape = header.shape[::-1] if header.fortran_order else header.shape
    array = np.frombuffer(content, header.dtype).reshape(shape)
    return array.T if header.fortran_order else array


@contextmanager
def _reading(files: RawFiles, name: str) -> Iterator[io.BufferedIOBase]:
    """Open a file; name it in every error that reading it can raise."""
    try:
        file = files.open(name)
    except (KeyError, FileNotFoundError):
        raise RecordingError(f"{name} is missing") from None
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise RecordingError(f"{name} cannot be opened: {error}") from error
    try:
        with file:
            yield file
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordingError(f"{name} is damaged: {error}") from error


def _parse_header(file: io.BufferedIOBase, name: str, size: int) -> NpyHeader:
    head = file.read(8)
    if head[:6] != b"\x93NUMPY":
        raise RecordingError(f"{name} is not a .npy file: it starts with {head[:6]!r}")
    version = head[6]
    if version not in (1, 2):
        raise RecordingError(f"{name} has .npy version {version}, but must have version 1 or 2")
    head += file.read(2 if version == 1 else 4)
    length = int.from_bytes(head[8:], "little")
    # numpy reads the header before it looks at its length; a hostile length would be allocated.
    if length > _MAX_HEADER_BYTES:
        raise RecordingError(
            f"{name} has a header of {length} bytes, but must have at most {_MAX_HEADER_BYTES}"
        )
    rest = io.BytesIO(head[8:] + file.read(length))
    reader = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = reader(rest)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise RecordingError(f"{name} has an unreadable header: {error}") from error
    if dtype.hasobject:
        raise RecordingError(
            f"{name} holds pickled objects, which are never loaded; save it as plain numbers"
        )
    header = NpyHeader(shape=shape, dtype=dtype, fortran_order=fortran_order, offset=len(head) + length)
    if min(shape, default=0) < 0 or header.num_bytes != size:
        state = "is truncated" if header.num_bytes > size else "is too long"
        raise RecordingError(
            f"{name} {state}: it has {size} bytes, "
            f"but its header ({dtype} {shape}) promises {header.num_bytes}"
        )
    return header


def _is_clutter(filename: str) -> bool:
    parts = filename.split("/")
    return "__MACOSX" in parts or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))


def _member_problem(member: zipfile.ZipInfo) -> str | None:
    parts = re.split(r"[/\\]", member.filename)
    if ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", parts[0]):
        return f"{member.filename!r} in the zip leads out of the folder it is unpacked to"
    if member.flag_bits & 1:
        return f"{member.filename} in the zip is encrypted, but must be plain"
    return None


def _find_root(path: Path, filenames: list[str]) -> str:
    matches = [match for filename in filenames if (match := _MOUSE_FILE.fullmatch(filename)) is not None]
    roots = sorted({match["root"] for match in matches})
    if len(roots) != 1:
        found = ", ".join(repr(root) for root in roots) or "none"
        raise RecordingError(f"{path} holds mouse folders {found}, but must hold exactly one")
    return roots[0]
