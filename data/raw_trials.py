"""The four arrays of one raw trial: read, checked, and cut to their valid frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.raw_files import RawFiles, read_npy
from data.raw_format import ARRAYS
from data.recording import RecordingError, Stimulus, Tier
from data.video_classes import classify_video
from data.videos import VideoSignature, grey_levels, sign_video

# Single arrays of the public mice end a frame early (299 of 300); another trial's array differs by more.
_MAX_LENGTH_DIFFERENCE = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawTrial:
    """One checked trial, as read; its arrays are cut to their own valid frames.

    Attributes:
        index: the trial's file number.
        tier: the split it belongs to.
        num_frames: frames valid in all of its arrays.
        video: grey levels in the source's precision, a view with time first.
        behavior: pupil dilation (camera pixels), running speed.
        pupil: pupil center, horizontal and vertical (camera pixels).
        responses: None where withheld.
        valid_lengths: valid frames of each stored array, by its folder's name; without withheld responses.
        signature: what tells whether two trials show the same video.
        stimulus: what kind of video it was.
    """

    index: int
    tier: Tier
    num_frames: int
    video: Float[np.ndarray, "t_video h w"]
    behavior: Float[np.ndarray, "2 t_behavior"]
    pupil: Float[np.ndarray, "2 t_pupil"]
    responses: Float[np.ndarray, "n t_responses"] | None
    valid_lengths: Mapping[str, int]
    signature: VideoSignature
    stimulus: Stimulus


def read_trial(
    files: RawFiles, index: int, tier: Tier | None, *, arrays: Sequence[str] = ARRAYS
) -> tuple[RawTrial | None, list[str]]:
    """Read and check a trial.

    Args:
        files: the recording.
        index: the trial's file number.
        tier: its split; None if unknown, then the trial is only checked.
        arrays: which of its arrays to read; the others are known to be broken.

    Returns:
        The trial, None if anything is wrong or missing; and what is wrong.
    """
    stored, problems = _read_arrays(files, index, arrays)
    lengths = {array: content.shape[-1] for array, content in stored.items()}
    problems += check_lengths(index, lengths)
    if problems or tier is None or not {"videos", "behavior", "pupil_center"} <= stored.keys():
        return None, problems
    video = np.moveaxis(stored["videos"], -1, 0)
    levels = grey_levels(video)
    trial = RawTrial(
        index=index,
        tier=tier,
        num_frames=min(lengths.values()),
        video=video,
        behavior=stored["behavior"],
        pupil=stored["pupil_center"],
        responses=stored.get("responses"),
        valid_lengths=lengths,
        signature=sign_video(levels),
        stimulus=classify_video(levels),
    )
    return trial, []


def _read_arrays(
    files: RawFiles, index: int, arrays: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read arrays cut to their valid frames; leaves out broken ones (listed) and withheld responses."""
    stored: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for array in arrays:
        name = trial_file(array, index)
        try:
            content = read_npy(files, name)
        except RecordingError as error:
            problems.append(str(error))
            continue
        length, found = check_content(name, content)
        content = content[..., :length]
        if array == "videos" and not found:
            found = check_grey_levels(name, content)
        problems += found
        if not found and not (array == "responses" and _is_withheld(content)):
            stored[array] = content
    return stored, problems


def check_content(name: str, array: Float[np.ndarray, "... t_pad"]) -> tuple[int, list[str]]:
    """Find how many frames of a stored array are valid, and whether they are finite.

    Args:
        name: the file, for messages.
        array: time last; NaN from the end of the trial on.

    Returns:
        The number of frames before the first NaN, and what is wrong.
    """
    flat = array.reshape(-1, array.shape[-1])
    # NaN and infinity both survive the sum: one pass instead of a mask as large as the array.
    with np.errstate(invalid="ignore", over="ignore"):
        total = flat.sum(axis=0, dtype=np.result_type(array.dtype, np.float32))
    is_suspect = ~np.isfinite(total)
    length = int(np.argmax(is_suspect)) if is_suspect.any() else len(total)
    if length < len(total) and not np.isnan(flat[:, length:]).all():
        return _explain(name, flat)
    if length == 0:
        return 0, [f"{name} has no valid frame, but must have at least one before its NaN tail"]
    return length, []


def check_lengths(index: int, lengths: dict[str, int]) -> list[str]:
    """Refuse a trial whose arrays end at very different frames: they belong to different trials."""
    if max(lengths.values(), default=0) - min(lengths.values(), default=0) <= _MAX_LENGTH_DIFFERENCE:
        return []
    found = ", ".join(f"{length} of {name}" for name, length in lengths.items())
    return [
        f"trial {index} has valid frames {found}, but they must agree within {_MAX_LENGTH_DIFFERENCE} frames"
    ]


def check_grey_levels(name: str, video: Float[np.ndarray, "h w t"]) -> list[str]:
    """Refuse a video that is not grey levels 0..255, for instance a normalized one."""
    low, high = float(video.min()), float(video.max())
    if low < -0.5 or high > 255.5:
        return [f"{name} has values from {low:g} to {high:g}, but must have grey levels from 0 to 255"]
    return []


def trial_file(array: str, index: int) -> str:
    """Return the name of the file with one array of one trial."""
    return f"data/{array}/{index}.npy"


def compress(numbers: Iterable[int]) -> str:
    """Write numbers with ranges: 1, 3-5, 9."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _explain(name: str, flat: Float[np.ndarray, "rows t_pad"]) -> tuple[int, list[str]]:
    is_nan = np.isnan(flat)
    alive = np.flatnonzero(~is_nan.all(axis=0))
    length = int(alive[-1]) + 1
    problems = []
    is_infinite = np.isinf(flat)
    if is_infinite.any():
        frames = np.flatnonzero(is_infinite.any(axis=0))
        problems.append(
            f"{name} has {int(is_infinite.sum())} infinite values, the first in frame {frames[0]}, "
            "but must be finite"
        )
    frames = np.flatnonzero(is_nan[:, :length].any(axis=0))
    if frames.size:
        problems.append(
            f"{name} has NaN in the middle, in frames {compress(frames.tolist())} of {length}, "
            "but must have NaN only after the end of the trial"
        )
    return length, problems


def _is_withheld(responses: Float[np.ndarray, "n t"]) -> bool:
    # Real silence is about 1e-9, never exactly zero; the first frame decides nearly always.
    return not responses[:, 0].any() and not responses.any()
