"""Simulate what the cameras saw of the mouse, and how it reaches the responses: running, pupil, gaze."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SHORTEST_DILATION_PX, LONGEST_DILATION_PX = 10.0, 92.0
_RUNNING_BOUT_FRAMES = 75
_SPEED_SMOOTHING_FRAMES = 6.0
_DILATION_SMOOTHING_FRAMES = 20.0
_GAZE_SMOOTHING_FRAMES = 8.0
_SLOW_GAIN_SMOOTHING_FRAMES = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviorProfile:
    """One mouse's habits.

    Attributes:
        dilation_px: mean and standard deviation of pupil dilation, camera pixels.
        speed: mean and standard deviation of running speed, the data set's unit.
        gaze_mean_px: mean pupil center, horizontal and vertical, camera pixels.
        gaze_std_px: its standard deviation.
    """

    dilation_px: tuple[float, float]
    speed: tuple[float, float]
    gaze_mean_px: tuple[float, float]
    gaze_std_px: tuple[float, float]


PROFILES = (
    BehaviorProfile(
        dilation_px=(53.6, 14.8), speed=(5.55, 8.74), gaze_mean_px=(119.9, 119.9), gaze_std_px=(4.9, 6.9)
    ),
    BehaviorProfile(
        dilation_px=(39.8, 16.1), speed=(0.30, 1.65), gaze_mean_px=(155.8, 151.5), gaze_std_px=(4.0, 4.5)
    ),
    BehaviorProfile(
        dilation_px=(48.2, 12.0), speed=(0.30, 1.23), gaze_mean_px=(152.3, 140.2), gaze_std_px=(6.3, 5.6)
    ),
    BehaviorProfile(
        dilation_px=(48.1, 13.0), speed=(0.42, 1.94), gaze_mean_px=(119.3, 145.5), gaze_std_px=(7.6, 4.9)
    ),
    BehaviorProfile(
        dilation_px=(52.1, 14.3), speed=(1.47, 4.27), gaze_mean_px=(155.8, 155.3), gaze_std_px=(5.7, 5.5)
    ),
    BehaviorProfile(
        dilation_px=(60.6, 12.1), speed=(0.73, 2.63), gaze_mean_px=(145.7, 124.9), gaze_std_px=(6.5, 7.7)
    ),
    BehaviorProfile(
        dilation_px=(41.5, 15.5), speed=(0.47, 1.89), gaze_mean_px=(180.1, 178.6), gaze_std_px=(5.0, 7.0)
    ),
    BehaviorProfile(
        dilation_px=(49.1, 17.2), speed=(0.36, 1.86), gaze_mean_px=(177.4, 148.0), gaze_std_px=(6.5, 5.8)
    ),
    BehaviorProfile(
        dilation_px=(51.1, 16.1), speed=(2.24, 5.00), gaze_mean_px=(151.5, 146.6), gaze_std_px=(7.0, 5.8)
    ),
    BehaviorProfile(
        dilation_px=(55.0, 17.1), speed=(0.76, 3.09), gaze_mean_px=(134.5, 144.5), gaze_std_px=(6.0, 5.5)
    ),
)
"""The ten public mice, an old one and its new partner in turn (A F B J C G D H E I); measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traces:
    """One trial's behavior.

    Attributes:
        behavior: pupil dilation (camera pixels), running speed.
        pupil: pupil center, horizontal and vertical (camera pixels).
        gaze: the same, in standard deviations from the mouse's mean.
        modulators: what scales the responses: running (0..1), pupil (standard deviations), and a slow gain
            shared by all neurons that no camera sees (standard deviations).
    """

    behavior: Float[np.ndarray, "2 t"]
    pupil: Float[np.ndarray, "2 t"]
    gaze: Float[np.ndarray, "2 t"]
    modulators: Float[np.ndarray, "3 t"]


def simulate_traces(num_frames: int, profile: BehaviorProfile, generator: np.random.Generator) -> Traces:
    """Simulate one trial: trials are shuffled in the data set, so each starts from the stationary state."""
    speed = _speed(num_frames, profile, generator)
    running = speed / (speed + 2.0)
    mean, std = profile.dilation_px
    arousal = 0.7 * generator.standard_normal() + 0.7 * _smooth_noise(
        num_frames, _DILATION_SMOOTHING_FRAMES, generator
    )
    dilation = np.clip(
        mean + std * (arousal + 0.5 * (running - running.mean())), SHORTEST_DILATION_PX, LONGEST_DILATION_PX
    )
    gaze = np.stack(
        [
            0.8 * generator.standard_normal()
            + 0.6 * _smooth_noise(num_frames, _GAZE_SMOOTHING_FRAMES, generator)
            for _ in range(2)
        ]
    )
    pupil = np.array(profile.gaze_mean_px)[:, None] + np.array(profile.gaze_std_px)[:, None] * gaze
    slow = _smooth_noise(num_frames, _SLOW_GAIN_SMOOTHING_FRAMES, generator)
    return Traces(
        behavior=np.stack([dilation, speed]),
        pupil=pupil,
        gaze=gaze,
        modulators=np.stack([running, (dilation - mean) / std, slow]),
    )


def shift_by_gaze(
    video: Float[np.ndarray, "t h w"], gaze: Float[np.ndarray, "2 t"], *, reach_px: float
) -> Float[np.ndarray, "t h w"]:
    """Move every frame as the eye does: by ``reach_px * tanh(gaze)``, between pixels by linear interpolation.

    Args:
        video: frames as shown.
        gaze: horizontal and vertical, in standard deviations.
        reach_px: where the shift saturates, video pixels.
    """
    shift = reach_px * np.tanh(gaze)
    moved = _shift_axis(video, shift[1], axis=1)
    return _shift_axis(moved, shift[0], axis=2)


def _shift_axis(
    video: Float[np.ndarray, "t h w"], shift: Float[np.ndarray, " t"], *, axis: int
) -> Float[np.ndarray, "t h w"]:
    size = video.shape[axis]
    position = np.clip(np.arange(size) + shift[:, None], 0, size - 1)
    low = np.minimum(position.astype(np.int64), size - 2)
    along = (slice(None), slice(None), None) if axis == 1 else (slice(None), None, slice(None))
    weight = (position - low).astype(np.float32)[along]
    below = np.take_along_axis(video, low[along], axis=axis)
    above = np.take_along_axis(video, low[along] + 1, axis=axis)
    moved: Float[np.ndarray, "t h w"] = below + weight * (above - below)
    return moved


def _speed(
    num_frames: int, profile: BehaviorProfile, generator: np.random.Generator
) -> Float[np.ndarray, " t"]:
    """Run in bouts between rests at 0; their number and speed give the profile's mean and deviation."""
    mean, std = profile.speed
    # E[v] = p m and E[v^2] = 1.3 p m^2, when speed within bouts has a squared variation of 0.3.
    bout_speed = (std**2 + mean**2) / (1.3 * mean)
    share = min(mean / bout_speed, 0.9)
    margin = int(3 * _SPEED_SMOOTHING_FRAMES)
    total = num_frames + 2 * margin
    runs = np.zeros(total)
    frame, is_running = 0, bool(generator.random() < share)
    while frame < total:
        length = _RUNNING_BOUT_FRAMES * (1.0 if is_running else (1 - share) / share)
        stop = frame + 1 + int(generator.exponential(length))
        runs[frame:stop] = bout_speed * generator.gamma(1 / 0.3, 0.3) if is_running else 0.0
        frame, is_running = stop, not is_running
    kernel = np.hanning(2 * margin + 1)
    return np.convolve(runs, kernel / kernel.sum(), mode="valid")


def _smooth_noise(
    num_frames: int, smoothing: float, generator: np.random.Generator
) -> Float[np.ndarray, " t"]:
    """Draw Gaussian noise of unit variance, smoothed by a Gaussian of this many frames."""
    half = int(3 * smoothing)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / smoothing) ** 2)
    kernel /= np.sqrt(np.square(kernel).sum())
    return np.convolve(generator.standard_normal(num_frames + 2 * half), kernel, mode="valid")
