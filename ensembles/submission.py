"""Submission files of the benchmark: both tracks, live and final, written trial by trial.

Source:
    Sensorium 2023 starter kit's README for columns and names; the winners' files for 249 frames.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int

from data.array_files import write_bytes
from data.folds import Trials
from data.recording import Recording, Tier
from ensembles.fusion import Fusion, predict_fused
from ensembles.manifest import EnsembleManifest, FileRef
from training.device import resolve_device
from training.encoders import load_encoder
from training.scored_frames import BURN_IN_FRAMES, LAST_FRAME

Track = Literal["main", "bonus"]

FILES: Mapping[Tier, str] = {
    Tier.LIVE_MAIN: "predictions_live_main.parquet.brotli",
    Tier.FINAL_MAIN: "predictions_final_main.parquet.brotli",
    Tier.LIVE_BONUS: "predictions_live_test_bonus_ood.parquet.brotli",
    Tier.FINAL_BONUS: "predictions_final_test_bonus_ood.parquet.brotli",
}
"""Names that the benchmark's server wants."""

ZIPS: Mapping[Track, Mapping[str, tuple[Tier, ...]]] = {
    "main": {"main.zip": (Tier.LIVE_MAIN, Tier.FINAL_MAIN)},
    # Each is uploaded alone, because of a limit of 5 GB.
    "bonus": {"bonus-live.zip": (Tier.LIVE_BONUS,), "bonus-final.zip": (Tier.FINAL_BONUS,)},
}

_COLUMNS: dict[str, pa.DataType] = {
    "mouse": pa.string(),
    "trial_indices": pa.int64(),
    "prediction": pa.list_(pa.list_(pa.float32())),
    "neuron_ids": pa.list_(pa.int64()),
}
SCHEMA = pa.schema(_COLUMNS)

WHOLE_FRAMES = LAST_FRAME - BURN_IN_FRAMES
"""Predicted frames of a whole trial, as the README has it; the winners' files leave out the last."""

OnTrial = Callable[[str, int, int], None]
"""Called with the file's name, trials written and trials in all."""


class SubmissionWriter:
    """Writes one file; use as a context manager. Only one trial is in memory at a time.

    The file gets its name when it is complete; an interrupted one is written anew.

    Args:
        path: the file to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rates hardly ever repeat: a dictionary of them would be built for nothing.
        self._writer = pq.ParquetWriter(self._partial, SCHEMA, compression="brotli", use_dictionary=False)

    def write(
        self,
        session: str,
        trial: int,
        predicted: Float[np.ndarray, "n t"],
        neuron_ids: Int[np.ndarray, " n"],
    ) -> None:
        """Append one trial.

        Args:
            session: the mouse's folder name.
            trial: index of its file.
            predicted: in the unit of the benchmark's server.
            neuron_ids: unit ids in the order of ``predicted``.

        Raises:
            ValueError: neurons and ids differ in number, or a value is not finite.
        """
        if len(neuron_ids) != len(predicted):
            raise ValueError(
                f"trial {trial} of {session} has predictions of {len(predicted)} neurons "
                f"and {len(neuron_ids)} ids, but must have as many"
            )
        if not np.isfinite(predicted).all():
            raise ValueError(f"trial {trial} of {session} has predictions that are not finite")
        columns: list[pa.Array[Any]] = [
            pa.array([session], pa.string()),
            pa.array([trial], pa.int64()),
            _nested(np.ascontiguousarray(predicted, np.float32)),
            _listed(pa.array(np.asarray(neuron_ids, np.int64))),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))

    def __enter__(self) -> "SubmissionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if kind is None:
            self._partial.replace(self.path)


def _nested(values: Float32[np.ndarray, "n t"]) -> "pa.Array[Any]":
    """Return one row of a list of lists, around the array's own memory."""
    num_neurons, num_frames = values.shape
    offsets = pa.array(np.arange(num_neurons + 1, dtype=np.int32) * num_frames)
    inner = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
    return _listed(inner)


def _listed(values: "pa.Array[Any]") -> "pa.Array[Any]":
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def cut_frames(
    predicted: Float[np.ndarray, "n t"], frames: tuple[int, int], *, num_frames: int, drop_last: bool
) -> Float[np.ndarray, "n t_out"]:
    """Return the frames that are submitted: from 50 on, at most to 300.

    Args:
        predicted: of ``frames``.
        frames: first predicted frame and the frame behind the last.
        num_frames: frames of the trial.
        drop_last: leave out the last frame, as the winners' files do.

    Raises:
        ValueError: submitted frames are not predicted.
    """
    stop = min(num_frames, LAST_FRAME) - drop_last
    if not frames[0] <= BURN_IN_FRAMES < stop <= frames[1]:
        raise ValueError(
            f"frames {frames[0]} to {frames[1]} are predicted, but frames {BURN_IN_FRAMES} to {stop} "
            "must be submitted"
        )
    return predicted[:, BURN_IN_FRAMES - frames[0] : stop - frames[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is submitted.

    Attributes:
        tracks: of the benchmark.
        frames: predicted frames of a whole trial: 250, or 249 without the last.
    """

    tracks: tuple[Track, ...] = ("main", "bonus")
    frames: int = WHOLE_FRAMES

    def __post_init__(self) -> None:
        """Refuse what no server takes."""
        if self.frames not in (WHOLE_FRAMES, WHOLE_FRAMES - 1):
            raise ValueError(
                f"--frames is {self.frames}, but must be {WHOLE_FRAMES}, "
                f"or {WHOLE_FRAMES - 1} without the last"
            )

    @property
    def drop_last(self) -> bool:
        """Whether the last frame of every trial is left out."""
        return self.frames < WHOLE_FRAMES


def withheld_trials(recordings: Sequence[Recording], tier: Tier) -> Trials:
    """Return the trials of a tier whose responses are withheld, by session: those are submitted."""
    trials = {
        recording.session: tuple(
            trial for trial in recording.trials if trial.tier is tier and not trial.has_responses
        )
        for recording in recordings
    }
    return {session: of for session, of in trials.items() if of}


def require_withheld(recordings: Sequence[Recording], submission: Submission) -> None:
    """Refuse tracks that the recordings have nothing to submit for.

    Raises:
        ValueError: names track and tier.
    """
    for track in submission.tracks:
        for tiers in ZIPS[track].values():
            for tier in tiers:
                if not withheld_trials(recordings, tier):
                    raise ValueError(
                        f"track {track} needs {tier}, but no recording has withheld trials of it; "
                        "give the competition's mice, or other --submit tracks"
                    )


def submit(
    root: Path,
    recordings: Sequence[Recording],
    submission: Submission,
    *,
    device: str = "auto",
    on_trial: OnTrial = lambda _name, _done, _total: None,
) -> list[Path]:
    """Write the submission of a finished build into ``submission/``; complete files are kept.

    Members predict together, each checkpoint loaded once, and only their running sum is kept.

    Args:
        root: folder of the build.
        recordings: the sessions, with the trials whose responses are withheld.
        submission: what to write.
        device: "auto", "cpu", "cuda" or "cuda:K".
        on_trial: called after each trial.

    Returns:
        The zips.

    Raises:
        ValueError: a track has no withheld trials.
    """
    manifest = EnsembleManifest.read(root)
    fusion = manifest.fusion(root)
    require_withheld(recordings, submission)
    folder = root / "submission"
    zips = [(folder / name, tiers) for track in submission.tracks for name, tiers in ZIPS[track].items()]
    pending = {
        tier: withheld_trials(recordings, tier)
        for _, tiers in zips
        for tier in tiers
        if not _is_written(folder / FILES[tier], manifest, submission)
    }
    if pending:
        _write_files(root, manifest, fusion, recordings, pending, submission, device, on_trial)
    for path, tiers in zips:
        _zip(path, [folder / FILES[tier] for tier in tiers])
    return [path for path, _ in zips]


def _write_files(
    root: Path,
    manifest: EnsembleManifest,
    fusion: Fusion,
    recordings: Sequence[Recording],
    pending: Mapping[Tier, Trials],
    submission: Submission,
    device: str,
    on_trial: OnTrial,
) -> None:
    encoders = {}
    for member in fusion.members:
        ref = manifest.member(member).checkpoint
        assert ref is not None
        encoders[member] = load_encoder(ref.verify(root).parent, device=resolve_device(device))
    by_session = {recording.session: recording for recording in recordings}
    for tier, trials in pending.items():
        path = root / "submission" / FILES[tier]
        total, done = sum(len(of) for of in trials.values()), 0
        with SubmissionWriter(path) as writer:
            for session, of_session in trials.items():
                recording = by_session[session]
                for one in predict_fused(fusion, encoders, recording, of_session):
                    predicted = cut_frames(
                        one.predicted,
                        one.frames,
                        num_frames=one.trial.num_frames,
                        drop_last=submission.drop_last,
                    )
                    writer.write(session, one.trial.index, predicted, recording.neurons.ids)
                    done += 1
                    on_trial(path.name, done, total)
        described = _identity(manifest, submission) | {"sha256": FileRef.of(path, root).sha256}
        write_bytes(_sidecar(path), (json.dumps(described, indent=1) + "\n").encode())


def _identity(manifest: EnsembleManifest, submission: Submission) -> dict[str, object]:
    checkpoints = {
        name: ref.sha256 for name in manifest.used if (ref := manifest.member(name).checkpoint) is not None
    }
    return {
        "checkpoints": checkpoints,
        "weights": {session: dict(of) for session, of in manifest.weights.items()},
        "data": manifest.data_sha256,
        "frames": submission.frames,
    }


def _is_written(path: Path, manifest: EnsembleManifest, submission: Submission) -> bool:
    if not (path.is_file() and _sidecar(path).is_file()):
        return False
    described = json.loads(_sidecar(path).read_text())
    return {name: described.get(name) for name in _identity(manifest, submission)} == _identity(
        manifest, submission
    )


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _zip(path: Path, files: Sequence[Path]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    # The files are compressed already; nothing is read into memory as a whole.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            with file.open("rb") as source, archive.open(_entry(file), "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    partial.replace(path)


def _entry(file: Path) -> zipfile.ZipInfo:
    # Without a date: two builds give the same zip.
    return zipfile.ZipInfo(file.name)


def read_submission(path: Path) -> Iterator[tuple[str, int, Float32[np.ndarray, "n t"], list[int]]]:
    """Yield session, trial, predictions and unit ids of a file, row by row."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1):
        row = batch.to_pylist()[0]
        yield row["mouse"], row["trial_indices"], np.array(row["prediction"], np.float32), row["neuron_ids"]
