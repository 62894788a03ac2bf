"""Write one session of a store, trial by trial."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from data.array_files import ArrayWriter, FileEntry, StoreError, flush_folder, write_array, write_bytes
from data.recording import Neurons
from data.sensorium import RawTrial
from data.store import STATISTICS, VARIABLES, SessionEntry, Source, write_session_file
from data.trial_table import TrialRow, write_trials
from data.videos import NUM_PROJECTIONS

_LARGEST_FLOAT16 = 65504.0
# Below 2^-14 float16 has fewer than 11 bits; a session whose largest value is this small would lose them.
_SMALLEST_PEAK = 0.125


class ResponseRangeError(StoreError):
    """Responses that float16 cannot hold to its 11 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Where a video lies in a store.

    Attributes:
        session: in whose ``videos.npy``.
        row: its first row there.
    """

    session: str
    row: int


class SessionWriter:
    """Write one session's folder; use as a context manager and call ``finish`` as the last thing.

    Everything goes to ``<session>.partial`` and gets its name in ``finish``, so a folder with the final name
    is complete. What an interrupted writer left is removed.

    Args:
        store: the folder of the store.
        neurons: in the order of the responses.
        source: where the session comes from.
        frame_rate_hz: of all arrays.
        frame_shape: rows and columns of a frame.
        num_padded_frames: frames of the raw arrays.
        responses_dtype: float16 or float32.
        video_dtype: uint8 or float16.
        known_clips: by sha256, what other sessions of the store hold already.
    """

    def __init__(
        self,
        store: Path,
        session: str,
        *,
        neurons: Neurons,
        source: Source,
        frame_rate_hz: float,
        frame_shape: tuple[int, int],
        num_padded_frames: int,
        responses_dtype: str,
        video_dtype: str,
        known_clips: Mapping[str, Clip],
    ) -> None:
        self.store = store
        self.session = session
        self.neurons = neurons
        self.source = source
        self.frame_rate_hz = frame_rate_hz
        self.frame_shape = frame_shape
        self.num_padded_frames = num_padded_frames
        self._clips = dict(known_clips)
        self._rows: list[TrialRow] = []
        self._largest_response = 0.0
        self._files: dict[str, FileEntry] = {}
        self._folder = store / f"{session}.partial"
        if self._folder.exists():
            shutil.rmtree(self._folder)
        (self._folder / "statistics").mkdir(parents=True)
        self._open = ExitStack()
        self._videos = self._writer("videos.npy", video_dtype, frame_shape)
        self._behavior = self._writer("behavior.npy", "float32", (4,))
        self._signatures = self._writer("signatures.npy", "int16", (NUM_PROJECTIONS,))
        self._responses = self._writer("responses.npy", responses_dtype, (len(neurons.ids),))

    def add(self, trial: RawTrial) -> None:
        """Write one trial; its video only if the store does not hold the same clip yet.

        Raises:
            ResponseRangeError: a response is too large for float16.
            StoreError: a grey level or a response is outside of what the store can hold.
        """
        frames = slice(trial.num_frames)
        clip, digest = self._add_video(trial)
        behavior = np.concatenate([trial.behavior[:, frames], trial.pupil[:, frames]])
        self._signatures.append(trial.signature.values)
        row = TrialRow(
            session=self.session,
            trial=trial.index,
            tier=trial.tier.value,
            stimulus=trial.stimulus.value,
            video_id="",
            num_frames=trial.num_frames,
            has_responses=trial.responses is not None,
            row=self._behavior.append(behavior.T.astype(np.float32, order="C")),
            responses_row=-1 if trial.responses is None else self._add_responses(trial),
            video_session=clip.session,
            video_row=clip.row,
            video_sha256=digest,
            **{f"valid_{array}": trial.valid_lengths.get(array, 0) for array in VARIABLES},
        )
        self._rows.append(row)

    def add_statistics(self, variable: str, values: Mapping[str, Float[np.ndarray, "..."]]) -> None:
        """Write the official statistics of one variable, by name."""
        stacked = np.stack([values[name].astype(np.float32) for name in STATISTICS])
        name = f"statistics/{variable}.npy"
        self._files[name] = write_array(self._folder / name, stacked)

    def finish(self) -> SessionEntry:
        """Flush everything to disk, give the folder its name and return its entry.

        Raises:
            ResponseRangeError: all responses are so small that float16 would lose digits.
        """
        if self._responses.dtype == np.float16 and 0 < self._largest_response < _SMALLEST_PEAK:
            raise ResponseRangeError(
                f"{self.session}: responses only reach {self._largest_response:g}, "
                "where float16 loses digits; convert with --responses float32"
            )
        self._open.close()
        for writer in (self._videos, self._behavior, self._signatures, self._responses):
            self._files[writer.path.name] = writer.entry()
        self._files["trials.parquet"] = write_trials(self._folder / "trials.parquet", self._rows)
        self._files["neurons.parquet"] = _write_neurons(self._folder / "neurons.parquet", self.neurons)
        entry = SessionEntry(
            session=self.session,
            source=self.source,
            frame_rate_hz=self.frame_rate_hz,
            frame_shape=self.frame_shape,
            num_padded_frames=self.num_padded_frames,
            fingerprint=self._fingerprint(),
            files=self._files,
        )
        write_session_file(self._folder, entry)
        flush_folder(self._folder / "statistics")
        self._folder.rename(self.store / self.session)
        flush_folder(self.store)
        return entry

    def _writer(self, name: str, dtype: str, row_shape: tuple[int, ...]) -> ArrayWriter:
        writer = ArrayWriter(self._folder / name, dtype=dtype, row_shape=row_shape)
        return self._open.enter_context(writer)

    def _add_video(self, trial: RawTrial) -> tuple[Clip, str]:
        dtype = self._videos.dtype
        grey = torch.from_numpy(trial.video)
        low, high = (float(value) for value in grey.aminmax())
        limits = (-0.5, 255.5) if dtype == np.uint8 else (-_LARGEST_FLOAT16, _LARGEST_FLOAT16)
        if not (limits[0] <= low and high <= limits[1]):
            raise StoreError(
                f"{self.session}: the video of trial {trial.index} has grey levels from {low:g} to {high:g}, "
                f"but must be within 0..255 to be stored as {dtype}"
            )
        grey = grey.round().clamp(0, 255).to(torch.uint8) if dtype == np.uint8 else grey.to(torch.float16)
        stored = grey.contiguous().numpy()
        # Mice of one pair saw the same files, one as float32 and one as float64: compare what is stored.
        digest = hashlib.sha256(f"{dtype} {stored.shape} ".encode() + stored.tobytes()).hexdigest()
        if digest not in self._clips:
            self._clips[digest] = Clip(session=self.session, row=self._videos.append(stored))
        return self._clips[digest], digest

    def _add_responses(self, trial: RawTrial) -> int:
        values = torch.from_numpy(trial.responses)[:, : trial.num_frames]
        low, high = (float(value) for value in values.aminmax())
        largest = max(-low, high)
        if not math.isfinite(low + high):
            raise StoreError(
                f"{self.session}: the responses of trial {trial.index} are from {low} to {high}, "
                "but must be finite"
            )
        if self._responses.dtype == np.float16 and largest > _LARGEST_FLOAT16:
            raise ResponseRangeError(
                f"{self.session}: the responses of trial {trial.index} reach {largest:g}, but float16 ends "
                f"at {_LARGEST_FLOAT16:g}; convert with --responses float32"
            )
        self._largest_response = max(self._largest_response, largest)
        return self._responses.append(_time_major(values, self._responses.dtype.name))

    def _fingerprint(self) -> str:
        """Hash what makes this session's data; video ids depend on its company and stay out."""
        trials = [
            (row.trial, row.tier, row.num_frames, row.has_responses, row.video_sha256) for row in self._rows
        ]
        arrays = {name: self._files[name].sha256 for name in ("behavior.npy", "responses.npy")}
        neurons = self.neurons.ids.tolist(), self.neurons.coordinates_um.tolist()
        content = json.dumps([self.session, neurons, trials, arrays])
        return hashlib.sha256(content.encode()).hexdigest()

    def __enter__(self) -> "SessionWriter":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(error_type, error, traceback)
        if error_type is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _time_major(values: Float[Tensor, "n t"], dtype: str) -> Float[np.ndarray, "t n"]:
    # Cast first: the transposition then moves a quarter of the bytes. torch, because numpy's cast to
    # half precision takes seven times as long.
    stored: np.ndarray = values.to(getattr(torch, dtype)).t().contiguous().numpy()
    return stored


def _write_neurons(path: Path, neurons: Neurons) -> FileEntry:
    x, y, z = neurons.coordinates_um.T
    table = pa.table({"unit_id": neurons.ids, "x_um": x, "y_um": y, "z_um": z})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return write_bytes(path, sink.getvalue().to_pybytes())


def read_clips(rows: list[TrialRow]) -> dict[str, Clip]:
    """Return where the clips of these trials lie, by sha256."""
    return {row.video_sha256: Clip(session=row.video_session, row=row.video_row) for row in rows}
