"""Write mouse folders in the raw Sensorium-2023 format; no other module knows how to write it.

Source: the data set's own description (gin.g-node.org/pollytur/sensorium_2023_dataset) and the
``FileTreeDataset`` of neuralpredictors, which reads such folders.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data.recording import Tier

ARRAYS = ("videos", "responses", "behavior", "pupil_center")
STATISTICS = ("min", "max", "mean", "median", "std")
STATISTICS_SCOPES = ("all", "stimulus_frame")
TIER_DTYPE = np.dtype("<U16")
"""Fixed width: a shorter one would silently cut ``final_test_bonus``."""

FRAME_RATE_HZ = 30
SESSION_PATTERN = re.compile(r"dynamic(\d+)-(\d+)-(\d+)-Video-[0-9a-f]+")
_STATISTICS_BLOCK_BYTES = 64 * 2**20


class RawWriter:
    """Write one mouse folder trial by trial, holding one trial (later one block of statistics) in memory.

    Everything goes to ``<folder>.partial`` and gets its name in ``finish``, so a folder with the final name
    is complete. Left-overs of an interrupted writer are removed.

    Args:
        folder: the mouse folder; its name is the session. Must not exist yet.
        num_padded_frames: length of every stored array; shorter ones end in NaN.
        dtype: float32 (the old mice) or float64 (the new ones), for all four arrays.
        unit_ids: ascending unit ids, one per neuron.
        coordinates_um: whole micrometres, one row per neuron.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_padded_frames: int,
        dtype: np.dtype,
        unit_ids: Int[np.ndarray, " n"],
        coordinates_um: Int[np.ndarray, "n 3"],
    ) -> None:
        self._dtype = np.dtype(dtype)
        if self._dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype is {self._dtype}, but must be float32 or float64")
        if num_padded_frames < 1:
            raise ValueError(f"num_padded_frames is {num_padded_frames}, but must be at least 1")
        if np.any(np.diff(unit_ids) <= 0):
            raise ValueError("unit_ids are not ascending, but must be ascending without duplicates")
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._num_padded_frames = num_padded_frames
        self._num_neurons = len(unit_ids)
        self._tiers: dict[int, Tier] = {}
        if self._partial.exists():
            shutil.rmtree(self._partial)
        for name in ARRAYS:
            (self._partial / "data" / name).mkdir(parents=True)
        _save(self._partial / "meta" / "neurons" / "unit_ids.npy", unit_ids.astype(np.int64))
        _save(
            self._partial / "meta" / "neurons" / "cell_motor_coordinates.npy", coordinates_um.astype(np.int64)
        )

    def write_trial(
        self,
        index: int,
        *,
        tier: Tier,
        video: Float[np.ndarray, "t h w"],
        behavior: Float[np.ndarray, "2 t_behavior"],
        pupil: Float[np.ndarray, "2 t_pupil"],
        responses: Float[np.ndarray, "n t_responses"] | None,
    ) -> None:
        """Write the four arrays of one trial.

        Args:
            index: the trial's file number; trials may come in any order.
            tier: its split.
            video: grey levels 0..255.
            behavior: pupil dilation (camera pixels), running speed.
            pupil: pupil center, horizontal and vertical (camera pixels).
            responses: deconvolved activity, or None to withhold it: zeros over the whole padded length, as in
                the data set. Arrays may have different lengths, as real ones do.
        """
        if index in self._tiers:
            raise ValueError(f"trial {index} is written already, but must be written once")
        if responses is not None and responses.shape[0] != self._num_neurons:
            raise ValueError(
                f"trial {index} has responses of {responses.shape[0]} neurons, "
                f"but must have {self._num_neurons}"
            )
        stored = {
            "videos": self._pad(np.moveaxis(video, 0, -1), f"video of trial {index}"),
            "behavior": self._pad(behavior, f"behavior of trial {index}"),
            "pupil_center": self._pad(pupil, f"pupil of trial {index}"),
            "responses": (
                np.zeros((self._num_neurons, self._num_padded_frames), self._dtype)
                if responses is None
                else self._pad(responses, f"responses of trial {index}")
            ),
        }
        for name, array in stored.items():
            _save(self._partial / "data" / name / f"{index}.npy", array)
        self._tiers[index] = tier

    def finish(self, *, trial_idx: Sequence[str] | None = None) -> None:
        """Write tiers, statistics over the train trials and ``config.json``, then give the folder its name.

        Args:
            trial_idx: the experiment's own trial numbers, as the new mice have them ('51', or '12--13--14'
                for merged image presentations); ``animal_id``, ``session``, ``scan_idx`` and ``target_fps``
                come with them. None for an old mouse, which has none of these files.
        """
        num_trials = len(self._tiers)
        if sorted(self._tiers) != list(range(num_trials)):
            missing = sorted(set(range(max(self._tiers) + 1)) - set(self._tiers))
            raise ValueError(
                f"{self._folder.name}: trials {missing} are missing, but indices must have no gaps"
            )
        tiers = [self._tiers[index] for index in range(num_trials)]
        meta = self._partial / "meta"
        _save(meta / "trials" / "tiers.npy", np.array([tier.value for tier in tiers], dtype=TIER_DTYPE))
        if trial_idx is not None:
            self._write_experiment(trial_idx)
        train = [index for index, tier in enumerate(tiers) if tier is Tier.TRAIN]
        for name in ARRAYS:
            paths = [self._partial / "data" / name / f"{index}.npy" for index in train]
            for statistic, values in statistics_over_trials(paths).items():
                for scope in STATISTICS_SCOPES:
                    _save(meta / "statistics" / name / scope / f"{statistic}.npy", values)
        (self._partial / "config.json").write_text(json.dumps({"links": {}}))
        self._partial.rename(self._folder)

    def _write_experiment(self, trial_idx: Sequence[str]) -> None:
        if len(trial_idx) != len(self._tiers):
            raise ValueError(f"trial_idx has {len(trial_idx)} entries, but must have {len(self._tiers)}")
        match = SESSION_PATTERN.fullmatch(self._folder.name)
        if match is None:
            raise ValueError(
                f"session is {self._folder.name!r}, "
                "but must look like dynamic12345-1-2-Video-0a1b to have a trial_idx"
            )
        columns = {"trial_idx": np.array(trial_idx, dtype=np.str_)}
        for name, number in zip(("animal_id", "session", "scan_idx"), match.groups(), strict=True):
            columns[name] = np.full(len(trial_idx), int(number), dtype=np.int64)
        columns["target_fps"] = np.full(len(trial_idx), float(FRAME_RATE_HZ))
        for name, column in columns.items():
            _save(self._partial / "meta" / "trials" / f"{name}.npy", column)

    def _pad(self, array: Float[np.ndarray, "... t"], what: str) -> Float[np.ndarray, "... t_pad"]:
        if array.shape[-1] > self._num_padded_frames:
            raise ValueError(
                f"{what} has {array.shape[-1]} frames, but must have at most {self._num_padded_frames}"
            )
        padded = np.full((*array.shape[:-1], self._num_padded_frames), np.nan, self._dtype)
        padded[..., : array.shape[-1]] = array
        return padded


def statistics_over_trials(
    paths: Sequence[Path], *, block_bytes: int = _STATISTICS_BLOCK_BYTES
) -> dict[str, Float[np.ndarray, "..."]]:
    """Compute min, max, mean, median and std over trials for every element and time point of their arrays.

    NaN (a trial that has ended) is left out; a time point no trial reaches is NaN.

    Args:
        paths: one ``.npy`` file per trial, all of one shape, time last.
        block_bytes: roughly how much of the stacked trials is held at once.
    """
    if not paths:
        raise ValueError("there are no train trials, but the statistics need at least one")
    first = _open(paths[0])
    shape, dtype = first.shape, first.dtype
    result = {name: np.empty(shape, dtype) for name in STATISTICS}
    row_bytes = len(paths) * shape[-1] * dtype.itemsize
    for rows in _blocks(int(np.prod(shape[:-1])), max(1, block_bytes // row_bytes)):
        # Trials last and sorted: NaN collects at the end, and min, max and median are single look-ups.
        stack = np.stack([_open(path).reshape(-1, shape[-1])[rows] for path in paths], axis=-1)
        stack.sort(axis=-1)
        for name, values in _statistics_of_sorted(stack).items():
            result[name].reshape(-1, shape[-1])[rows] = values
    return result


def _statistics_of_sorted(stack: Float[np.ndarray, "rows t k"]) -> dict[str, Float[np.ndarray, "rows t"]]:
    valid = ~np.isnan(stack)
    count = valid.sum(axis=-1)
    total = np.maximum(count, 1)
    mean = np.sum(stack, axis=-1, where=valid, dtype=np.float64) / total
    deviation = np.where(valid, stack - mean[..., None], 0.0)

    def at(position: Int[np.ndarray, "rows t"]) -> Float[np.ndarray, "rows t"]:
        return np.take_along_axis(stack, position[..., None], axis=-1)[..., 0]

    values = {
        "min": at(np.zeros_like(count)),
        "max": at(total - 1),
        "mean": mean,
        "median": (at((total - 1) // 2) + at(total // 2)) / 2,
        "std": np.sqrt(np.square(deviation).sum(axis=-1) / total),
    }
    return {name: np.where(count > 0, value, np.nan) for name, value in values.items()}


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _open(path: Path) -> np.ndarray:
    opened: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return opened


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=False)
