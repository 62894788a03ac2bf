"""Cut real video files into the distinct clips of a simulated recording.

ffmpeg (from the extra ``movies``) reads any container; frames are cropped to 16:9, averaged over areas to
grey 36 x 64 and resampled to 30 Hz by their time stamps.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, UInt8

from data.raw_format import FRAME_RATE_HZ

SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)
_CHUNK_FRAMES = 1024
_FLAT_STD = 2.0
"""Grey levels; a clip that varies less (a black screen, a title) teaches nothing."""


class MovieLibrary:
    """The distinct clips in a folder of video files, decoded once into a temporary file.

    Args:
        folder: searched for video files, with its subfolders.
        clip_frames: length of a clip at 30 Hz.
        frame_shape: height and width of a clip.
    """

    def __init__(self, folder: Path, *, clip_frames: int, frame_shape: tuple[int, int]) -> None:
        self._folder, self._clip_frames, self._frame_shape = folder, clip_frames, frame_shape
        files = find_movies(folder)
        # A file without a name: the system frees it with the last map, also after a crash.
        with tempfile.TemporaryFile() as decoded:
            lengths = [_decode(file, decoded, frame_shape=frame_shape) for file in files]
            self._frames: UInt8[np.ndarray, "t h w"] = np.memmap(
                decoded, np.uint8, mode="r", shape=(sum(lengths), *frame_shape)
            )
        self._starts = self._distinct(lengths)
        self.fingerprint = hashlib.sha256(
            f"{clip_frames} {frame_shape} {[(f.name, f.stat().st_size) for f in files]}".encode()
        ).hexdigest()
        self.num_files = len(files)
        self.minutes = sum(lengths) / FRAME_RATE_HZ / 60

    def __len__(self) -> int:
        return len(self._starts)

    def __str__(self) -> str:
        distinct = len(self) * self._clip_frames / FRAME_RATE_HZ / 60
        return (
            f"{self.num_files} files, {self.minutes:.1f} min: {len(self)} distinct clips of "
            f"{self._clip_frames} frames, {distinct:.1f} min of distinct movie"
        )

    def clip(self, number: int) -> Float[np.ndarray, "t h w"]:
        """Return one clip, grey levels 0..255."""
        start = self._starts[number]
        return self._frames[start : start + self._clip_frames].astype(np.float32)

    def require(self, num_clips: int) -> None:
        """Refuse a simulation that needs more distinct clips than there are."""
        if len(self) < num_clips:
            raise ValueError(
                f"{self._folder} holds {self}, but the simulation needs {num_clips} clips; "
                "add movies, or ask for fewer mice or training clips"
            )

    def _distinct(self, lengths: list[int]) -> list[int]:
        """Return where clips start that are not cut off, not flat and not a copy of an earlier one."""
        starts, seen, begin = [], set(), 0
        for length in lengths:
            for start in range(begin, begin + length - self._clip_frames + 1, self._clip_frames):
                clip = self._frames[start : start + self._clip_frames]
                digest = hashlib.sha256(clip.tobytes()).digest()
                if digest not in seen and clip.std() > _FLAT_STD:
                    starts.append(start)
                    seen.add(digest)
            begin += length
        return starts


def find_movies(folder: Path) -> list[Path]:
    """List the video files of a folder and its subfolders, by name."""
    if not folder.is_dir():
        raise ValueError(f"movies is {folder}, but must be a folder with video files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no video files; known endings are {', '.join(sorted(SUFFIXES))}")
    return files


def _decode(file: Path, out: IO[bytes], *, frame_shape: tuple[int, int]) -> int:
    """Append a video's grey frames to a file and return their number."""
    height, width = frame_shape
    crop = "crop='min(iw,ih*16/9)':'min(ih,iw*9/16)'"
    filters = f"{crop},scale={width}:{height}:flags=area,fps={FRAME_RATE_HZ},format=gray"
    command = [_ffmpeg(), "-nostdin", "-v", "error", "-i", str(file), "-map", "0:v:0", "-vf", filters]
    begin = out.seek(0, os.SEEK_END)
    finished = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "gray", "-"], stdout=out, stderr=subprocess.PIPE, check=False
    )
    num_frames = (out.seek(0, os.SEEK_END) - begin) // (height * width)
    if finished.returncode != 0 or num_frames == 0:
        reason = [*finished.stderr.decode(errors="replace").strip().splitlines(), "it has no frames"][0]
        raise ValueError(f"{file} is not a video that ffmpeg can read: {reason}")
    return num_frames


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading movies needs imageio-ffmpeg: pip install -e '.[movies]'", name=error.name
        ) from error
    return str(imageio_ffmpeg.get_ffmpeg_exe())
