"""What a recording is: one mouse, one imaging session, many trials of video and activity."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int, Shaped

from data.array_files import StoreError, map_array
from data.store import STATISTICS, VARIABLES, SessionEntry, check_sizes, read_manifest
from data.trial_table import TrialRow, read_trials


class RecordingError(ValueError):
    """A recording that cannot be read; the message names session, file, found and expected."""


class Tier(StrEnum):
    """The data set's own names for its splits (Sensorium 2023), unchanged."""

    TRAIN = "train"
    ORACLE = "oracle"
    LIVE_MAIN = "live_test_main"
    LIVE_BONUS = "live_test_bonus"
    FINAL_MAIN = "final_test_main"
    FINAL_BONUS = "final_test_bonus"
    NONE = "none"


class Stimulus(StrEnum):
    """What a trial showed: a natural movie or one of the five out-of-distribution classes."""

    MOVIE = "movie"
    PINK_NOISE = "pink_noise"
    GAUSSIAN_DOTS = "gaussian_dots"
    RANDOM_DOTS = "random_dots"
    GABOR = "gabor"
    IMAGES = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One presentation of a video.

    Attributes:
        index: the trial's file number in the raw folder (and its row in ``meta/trials``).
        tier: the split it belongs to.
        num_frames: frames valid in all of its arrays.
        video_id: the same video has the same id, also in another mouse.
        stimulus: what kind of video it was.
        has_responses: False where the data set withholds the responses.
    """

    index: int
    tier: Tier
    num_frames: int
    video_id: str
    stimulus: Stimulus
    has_responses: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neurons:
    """The neurons of one session, in the order of the response arrays.

    Attributes:
        ids: unit ids, ascending with gaps.
        coordinates_um: position in cortex (x, y, depth), micrometres.
    """

    ids: Int[np.ndarray, " n"]
    coordinates_um: Float[np.ndarray, "n 3"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """Frames of one trial, time first: views into the mapped store, read-only and not copied.

    Attributes:
        video: grey levels 0..255, uint8 or float16.
        behavior: pupil dilation (camera pixels), running speed.
        pupil: pupil center, horizontal and vertical (camera pixels).
        responses: activity as stored, float16 or float32; None where withheld.
    """

    video: Shaped[np.ndarray, "t h w"]
    behavior: Float32[np.ndarray, "t 2"]
    pupil: Float32[np.ndarray, "t 2"]
    responses: Float[np.ndarray, "t n"] | None


class Recording:
    """One session of a store.

    Opening checks the manifest and the files' sizes; the arrays are mapped when they are first used, by each
    process for itself, so that all processes of a machine share their pages. A pickled recording is its path
    and name; it opens itself again where it arrives, with the video ids it had.

    Attributes:
        store: absolute path of the store.
        session: name of the recording.
        frame_rate_hz: of all its arrays.
        neurons: in the order of the responses.
        trials: in the order of the raw folder, which is not the order of the experiment.
        frame_shape: rows and columns of a video frame.
        num_padded_frames: frames of the official statistics.
        fingerprint: sha256 identity of neurons, trials and data.
    """

    def __init__(self, store: Path, entry: SessionEntry, *, trials_table: str) -> None:
        self.store = store
        self._entry = entry
        self._trials_table = trials_table
        check_sizes(store / entry.session, entry)
        rows = read_trials(store / trials_table, session=entry.session)
        _check_rows(rows, entry, table=store / trials_table)
        self._rows = {row.trial: row for row in rows}
        self.session = entry.session
        self.frame_rate_hz = entry.frame_rate_hz
        self.frame_shape = entry.frame_shape
        self.num_padded_frames = entry.num_padded_frames
        self.fingerprint = entry.fingerprint
        self.trials = tuple(_trial(row) for row in rows)
        self._trial_of = {trial.index: trial for trial in self.trials}
        self.neurons = _read_neurons(store / entry.session / "neurons.parquet")
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    @classmethod
    def open(cls, store: Path, session: str) -> "Recording":
        """Open one session of a store.

        Raises:
            StoreError: no store, another format version, an unknown session, a missing or truncated file.
        """
        store = Path(store).absolute()
        manifest = read_manifest(store)
        return cls(store, manifest.entry(session), trials_table=manifest.trials_table)

    def frames(self, trial: Trial, start: int, stop: int, step: int = 1) -> Frames:
        """Return frames ``start, start + step, ...`` before ``stop`` of one trial.

        Raises:
            ValueError: the trial is not of this recording, or the frames are not in it.
        """
        row = self._row(trial)
        if not (0 <= start < stop <= row.num_frames and step >= 1):
            raise ValueError(
                f"frames are {start}:{stop}:{step} of trial {trial.index} of {self.session}, "
                f"but must be in 0:{row.num_frames} with a step of at least 1"
            )
        first, last = row.row + start, row.row + stop
        videos = self._array(row.video_session, "videos.npy")
        if not 0 <= row.video_row <= len(videos) - row.num_frames:
            raise StoreError(
                f"{self.store / self._trials_table}: the video of trial {trial.index} of {self.session} has "
                f"{row.num_frames} frames from {row.video_row} on, but must be within the {len(videos)} of "
                f"{row.video_session}; convert the recordings again"
            )
        behavior = self._array(self.session, "behavior.npy")[first:last:step]
        responses = None
        if row.has_responses:
            first, last = row.responses_row + start, row.responses_row + stop
            responses = self._array(self.session, "responses.npy")[first:last:step]
        return Frames(
            video=videos[row.video_row + start : row.video_row + stop : step],
            behavior=behavior[:, :2],
            pupil=behavior[:, 2:],
            responses=responses,
        )

    def video(self, trial: Trial) -> Shaped[np.ndarray, "t h w"]:
        """Return the whole video of a trial: grey levels 0..255, uint8 or float16."""
        return self.frames(trial, 0, trial.num_frames).video

    def behavior(self, trial: Trial) -> Float32[np.ndarray, "2 t"]:
        """Return pupil dilation (camera pixels) and running speed."""
        return self.frames(trial, 0, trial.num_frames).behavior.T

    def pupil(self, trial: Trial) -> Float32[np.ndarray, "2 t"]:
        """Return the pupil center, horizontal and vertical (camera pixels)."""
        return self.frames(trial, 0, trial.num_frames).pupil.T

    def responses(self, trial: Trial) -> Float[np.ndarray, "n t"] | None:
        """Return the activity of all neurons as stored, or None where it is withheld."""
        responses = self.frames(trial, 0, trial.num_frames).responses
        return None if responses is None else responses.T

    def statistics(self, variable: str, name: str) -> Float32[np.ndarray, "..."]:
        """Return an official statistic: over trials, for each element and each of the padded frames.

        Args:
            variable: videos, responses, behavior or pupil_center.
            name: min, max, mean, median or std.

        Returns:
            The raw array's shape, padded frames last: ``(n, num_padded_frames)`` for responses. NaN where no
            trial of the statistic lasted that long.

        Raises:
            StoreError: the raw recording came without them.
        """
        for what, value, known in (("variable", variable, VARIABLES), ("name", name, STATISTICS)):
            if value not in known:
                raise ValueError(f"{what} is {value!r}, but must be one of {', '.join(known)}")
        if f"statistics/{variable}.npy" not in self._entry.files:
            raise StoreError(
                f"{self.session} has no official statistics of {variable}: its source, "
                f"{self._entry.source.name}, came without meta/statistics/{variable}/all; use a complete one"
            )
        stacked: np.ndarray = self._array(self.session, f"statistics/{variable}.npy")
        values: np.ndarray = stacked[STATISTICS.index(name)]
        return values

    def _row(self, trial: Trial) -> TrialRow:
        own = self._trial_of.get(trial.index)
        if own is not trial and own != trial:
            raise ValueError(f"trial is {trial}, but must be one of the trials of {self.session}")
        return self._rows[trial.index]

    def _array(self, session: str, name: str) -> Shaped[np.ndarray, "..."]:
        key = (session, name)
        if key not in self._arrays:
            # Clips shared with another mouse lie in that mouse's folder.
            entry = self._entry if session == self.session else read_manifest(self.store).entry(session)
            self._arrays[key] = map_array(self.store / session / name, entry.files[name])
        return self._arrays[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.store, self.session, self._trials_table)

    def __repr__(self) -> str:
        return f"Recording({self.session}: {len(self.neurons.ids)} neurons, {len(self.trials)} trials)"


def open_store(store: Path) -> list[Recording]:
    """Open all sessions of a store, in alphabetical order.

    Raises:
        StoreError: as ``Recording.open``.
    """
    store = Path(store).absolute()
    manifest = read_manifest(store)
    return [
        Recording(store, entry, trials_table=manifest.trials_table) for entry in manifest.sessions.values()
    ]


def _reopen(store: Path, session: str, trials_table: str) -> Recording:
    return Recording(store, read_manifest(store).entry(session), trials_table=trials_table)


def _check_rows(rows: Sequence[TrialRow], entry: SessionEntry, *, table: Path) -> None:
    """Refuse trials whose frames the session does not have: slices would silently be shorter."""
    lengths = {name: entry.files[f"{name}.npy"].shape[0] for name in ("behavior", "responses")}
    for row in rows:
        places = [("row", row.row, lengths["behavior"])]
        if row.has_responses:
            places.append(("responses_row", row.responses_row, lengths["responses"]))
        for name, first, length in places:
            if row.num_frames < 1 or not 0 <= first <= length - row.num_frames:
                raise StoreError(
                    f"{table}: trial {row.trial} of {entry.session} has {name} {first} and {row.num_frames} "
                    f"frames, but must be within {length}; convert the recordings again"
                )
        for name, value, known in (("tier", row.tier, Tier), ("stimulus", row.stimulus, Stimulus)):
            if value not in set(known):
                raise StoreError(
                    f"{table}: trial {row.trial} of {entry.session} has {name} {value!r}, "
                    f"but must have one of {', '.join(known)}"
                )


def _trial(row: TrialRow) -> Trial:
    return Trial(
        index=row.trial,
        tier=Tier(row.tier),
        num_frames=row.num_frames,
        video_id=row.video_id,
        stimulus=Stimulus(row.stimulus),
        has_responses=row.has_responses,
    )


def _read_neurons(path: Path) -> Neurons:
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{path} is not a table of neurons ({error}); convert the recordings again"
        ) from error
    coordinates = [table[f"{axis}_um"].to_numpy() for axis in "xyz"]
    return Neurons(ids=table["unit_id"].to_numpy(), coordinates_um=np.stack(coordinates, axis=1))
