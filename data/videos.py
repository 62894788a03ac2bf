"""Which trials show the same video, within a mouse and across mice.

Nothing on disk says so, and repeats are not bit-identical: the published frames were picked at measured flip
times, so cuts move by a frame and clips end a frame earlier or later. So each video gets a compact signature
per frame, and two trials show the same video if frame for frame each is found in the other at nearly the
same time.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8

NUM_PROJECTIONS = 32
"""Numbers kept of each frame; their differences estimate the rms grey-level difference within about 13 %."""

_SCALE = 16
_MAX_SHIFT = 3
_MAX_UNMATCHED_RUN = 3
_MIN_MATCHED_SHARE = 0.85
_TOLERANCE_GREY_LEVELS = 2.0
_SMOOTHED_FRAMES = 10
_SMOOTHED_STEP = 5
_BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoSignature:
    """A video's frames, each reduced to a few random projections.

    Exact: the same rounded grey levels give the same numbers on any machine.

    Attributes:
        values: projections of each frame, divided by 16; 19 kB for 300 frames.
        frame_shape: height and width; videos of different sizes are different videos.
    """

    values: Int16[np.ndarray, "t d"]
    frame_shape: tuple[int, int]

    def content_hash(self) -> str:
        """Return a name for exactly these frames."""
        digest = hashlib.sha256(repr((self.frame_shape, self.values.shape)).encode("ascii"))
        digest.update(np.ascontiguousarray(self.values, dtype="<i2").data)
        return digest.hexdigest()[:16]


def sign_video(frames: UInt8[np.ndarray, "t h w"]) -> VideoSignature:
    """Reduce every frame to ``NUM_PROJECTIONS`` numbers.

    Random signs keep distances whatever the frames show (Achlioptas 2003); averages over patches would make
    all gratings alike.

    Args:
        frames: grey levels.
    """
    num_pixels = frames.shape[1] * frames.shape[2]
    # Whole numbers below 2 ** 24 add up exactly in float32, in any order.
    centered = frames.reshape(len(frames), num_pixels).astype(np.float32) - 128
    projected = centered @ _random_signs(num_pixels)
    values = np.clip(np.rint(projected / _SCALE), -(2**15), 2**15 - 1).astype(np.int16)
    return VideoSignature(values=values, frame_shape=(frames.shape[1], frames.shape[2]))


def grey_levels(video: Float[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w"]:
    """Round a stored video to grey levels 0..255."""
    rounded: np.ndarray = np.clip(np.rint(video), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded)


def assign_video_ids(
    signatures_by_session: Mapping[str, Sequence[VideoSignature]],
) -> dict[str, tuple[str, ...]]:
    """Name the video of every trial; trials that show the same video get the same name, also across sessions.

    A name is the smallest content hash among the trials that show the video: it depends on which trials are
    given, not on their order or that of the sessions. Calls with other sessions can name a video differently.

    Args:
        signatures_by_session: one signature per trial.

    Returns:
        For each session one name per trial, in the given order.
    """
    signatures = [signature for each in signatures_by_session.values() for signature in each]
    hashes = [signature.content_hash() for signature in signatures]
    parents = list(range(len(signatures)))
    for first, second in _candidates(signatures):
        if _find(parents, first) != _find(parents, second) and is_same_video(
            signatures[first], signatures[second]
        ):
            parents[_find(parents, first)] = _find(parents, second)
    name_of_root: dict[int, str] = {}
    for index, content_hash in enumerate(hashes):
        root = _find(parents, index)
        name_of_root[root] = min(name_of_root.get(root, content_hash), content_hash)
    names = iter([name_of_root[_find(parents, index)] for index in range(len(signatures))])
    return {session: tuple(next(names) for _ in each) for session, each in signatures_by_session.items()}


def is_same_video(first: VideoSignature, second: VideoSignature) -> bool:
    """Compare two videos frame by frame, allowing for the frames' measured times.

    A frame is found if the other video has it within three frames of the same time, or passes through it
    between two frames (resampled frames may be blends), up to an rms difference of two grey levels. Of the
    same video nearly all frames are found, both ways, and never more than three in a row are not. Even the
    shortest segment (a Gaussian dot) has nine frames, so clips which differ in one segment are different.
    """
    if first.frame_shape != second.frame_shape:
        return False
    if abs(len(first.values) - len(second.values)) > _MAX_SHIFT:
        return False
    # The distance of one frame is the sum over projections; its expectation is the squared pixel distance.
    num_pixels = first.frame_shape[0] * first.frame_shape[1]
    tolerance = _TOLERANCE_GREY_LEVELS**2 * num_pixels * NUM_PROJECTIONS / _SCALE**2
    return all(
        _is_found(_squared_distances(a.values, b.values) <= tolerance)
        for a, b in ((first, second), (second, first))
    )


def _is_found(is_matched: np.ndarray[Any, np.dtype[np.bool_]]) -> bool:
    if is_matched.mean() < _MIN_MATCHED_SHARE:
        return False
    edges = np.flatnonzero(np.concatenate(([True], is_matched, [True])))
    return int(np.diff(edges).max()) - 1 <= _MAX_UNMATCHED_RUN


def _squared_distances(
    frames: Int16[np.ndarray, "t d"], path: Int16[np.ndarray, "t_path d"]
) -> Float32[np.ndarray, " t"]:
    """Measure from each frame to the nearest point of the other video's path around the same time."""
    padding = [(_MAX_SHIFT, _MAX_SHIFT + max(0, len(frames) - len(path))), (0, 0)]
    points = np.pad(path.astype(np.float32), padding, mode="edge")
    steps = np.diff(points, axis=0)
    step_lengths = np.maximum(np.einsum("td,td->t", steps, steps), 1e-6)
    nearest = np.full(len(frames), np.inf, np.float32)
    for shift in range(2 * _MAX_SHIFT):
        here = slice(shift, shift + len(frames))
        offset = frames - points[here]
        share = np.clip(np.einsum("td,td->t", offset, steps[here]) / step_lengths[here], 0, 1)
        offset -= share[:, None] * steps[here]
        nearest = np.minimum(nearest, np.einsum("td,td->t", offset, offset))
    return nearest


def _candidates(signatures: Sequence[VideoSignature]) -> Iterator[tuple[int, int]]:
    """Yield pairs worth comparing frame by frame, by blocks of one matrix product.

    The smoothed course of the projections hardly changes when a cut moves by a frame, and is nearly
    uncorrelated between different videos.
    """
    for shape in sorted({signature.frame_shape for signature in signatures}):
        members = np.array([i for i, signature in enumerate(signatures) if signature.frame_shape == shape])
        features = _smoothed_courses([signatures[i].values for i in members])
        lengths = np.array([len(signatures[i].values) for i in members])
        power = np.einsum("ij,ij->i", features, features)
        slack = _TOLERANCE_GREY_LEVELS**2 * shape[0] * shape[1] / _SCALE**2 * features.shape[1]
        for start in range(0, len(members), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            similarity = 2 * features[rows] @ features[start:].T
            similarity -= (power[rows, None] + power[None, start:]) / 2 - slack
            is_near = np.abs(lengths[rows, None] - lengths[None, start:]) <= _MAX_SHIFT
            for row, column in np.argwhere(is_near & (similarity >= 0)):
                if row < column:
                    yield int(members[start + row]), int(members[start + column])


def _smoothed_courses(values: Sequence[Int16[np.ndarray, "_ d"]]) -> Float32[np.ndarray, "k courses"]:
    longest = max(len(each) for each in values)
    starts = np.arange(0, longest, _SMOOTHED_STEP)
    courses = np.zeros((len(values), len(starts), NUM_PROJECTIONS), np.float32)
    for course, each in zip(courses, values, strict=True):
        sums = np.concatenate([np.zeros((1, NUM_PROJECTIONS)), np.cumsum(each - each.mean(axis=0), axis=0)])
        ends = np.minimum(starts + _SMOOTHED_FRAMES, len(each))
        begins = np.minimum(starts, len(each))
        course[:] = (sums[ends] - sums[begins]) / _SMOOTHED_FRAMES
    return courses.reshape(len(values), -1)


def _find(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _random_signs(num_pixels: int) -> Float32[np.ndarray, "pixels d"]:
    # The raw bit stream is the part of numpy's generators that is promised to stay the same.
    words = np.random.PCG64([num_pixels, NUM_PROJECTIONS]).random_raw(num_pixels * NUM_PROJECTIONS // 64 + 1)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: num_pixels * NUM_PROJECTIONS]
    signs: np.ndarray = bits.reshape(num_pixels, NUM_PROJECTIONS).astype(np.float32) * 2 - 1
    return signs
