"""Recordings of a few frames and neurons, read from arrays that a test chooses instead of a store."""

from dataclasses import dataclass

import numpy as np

from data.recording import Frames, Neurons, Recording, Stimulus, Tier, Trial

FRAME_SHAPE = (2, 3)
NUM_PADDED_FRAMES = 14


@dataclass(frozen=True)
class TinyArrays:
    """Time-major arrays of one trial, as a store keeps them."""

    video: np.ndarray
    behavior: np.ndarray
    pupil: np.ndarray
    responses: np.ndarray | None


def tiny_trial(index, num_frames, tier=Tier.TRAIN, *, video_id=None, has_responses=True):
    return Trial(
        index=index,
        tier=tier,
        num_frames=num_frames,
        video_id=str(index) if video_id is None else video_id,
        stimulus=Stimulus.MOVIE,
        has_responses=has_responses,
    )


def tiny_arrays(trial, num_neurons, *, seed=0, dtype=np.float16):
    """Draw values that float16 holds exactly."""
    rng = np.random.default_rng([seed, trial.index])
    frames = trial.num_frames
    responses = (rng.integers(0, 2048, (frames, num_neurons)) / 16).astype(dtype)
    return TinyArrays(
        video=rng.integers(0, 256, (frames, *FRAME_SHAPE)).astype(np.uint8),
        behavior=(rng.integers(1, 99, (frames, 2)) / 4).astype(np.float32),
        pupil=(rng.integers(1, 99, (frames, 2)) / 8).astype(np.float32),
        responses=responses if trial.has_responses else None,
    )


class TinyRecording(Recording):
    """A recording in memory; its official statistics are those of the train tier."""

    def __init__(self, session, trials, arrays):
        self.session = session
        self.frame_rate_hz = 30.0
        self.frame_shape = FRAME_SHAPE
        self.num_padded_frames = NUM_PADDED_FRAMES
        self.trials = tuple(trials)
        self.arrays = {trial.index: values for trial, values in zip(trials, arrays, strict=True)}
        for values in arrays:
            for array in (values.video, values.behavior, values.pupil, values.responses):
                if array is not None:
                    array.flags.writeable = False
        num_neurons = next(v.responses.shape[1] for v in arrays if v.responses is not None)
        self.neurons = Neurons(
            ids=np.arange(num_neurons), coordinates_um=np.arange(3.0 * num_neurons).reshape(num_neurons, 3)
        )

    def frames(self, trial, start, stop, step=1):
        assert 0 <= start < stop <= trial.num_frames
        values, kept = self.arrays[trial.index], slice(start, stop, step)
        return Frames(
            video=values.video[kept],
            behavior=values.behavior[kept],
            pupil=values.pupil[kept],
            responses=None if values.responses is None else values.responses[kept],
        )

    def statistics(self, variable, name):
        padded = self._padded(variable)
        known = ~np.isnan(padded).all(axis=0)
        table = np.full(padded.shape[1:], np.nan, dtype=np.float32)
        table[known] = getattr(np, f"nan{name}")(padded[:, known], axis=0)
        return table

    def _padded(self, variable):
        field = {"videos": "video", "pupil_center": "pupil"}.get(variable, variable)
        arrays = [getattr(self.arrays[t.index], field) for t in self.trials if t.tier == Tier.TRAIN]
        padded = np.full((len(arrays), *arrays[0].shape[1:], NUM_PADDED_FRAMES), np.nan)
        for target, array in zip(padded, arrays, strict=True):
            target[..., : len(array)] = np.moveaxis(array, 0, -1)
        return padded
