"""Raw mouse folders of a few neurons: two partners that saw the same videos, in the public format."""

from pathlib import Path

import numpy as np

from data.raw_format import RawWriter
from data.recording import Tier

FRAME_SHAPE = (12, 20)
NUM_FRAMES = 64
NUM_PADDED_FRAMES = 66
OLD_MOUSE = "dynamic40011-1-2-Video-0a1b2c3d"
NEW_MOUSE = "dynamic40024-3-4-Video-4e5f6a7b"
NUM_NEURONS = {OLD_MOUSE: 5, NEW_MOUSE: 7}

# Video numbers by tier; the partners saw the same videos, the test videos under other tiers' names.
_NUM_TRAIN = 12
_TEST_VIDEOS = {
    OLD_MOUSE: {Tier.ORACLE: (20, 21), Tier.LIVE_MAIN: (22, 23), Tier.FINAL_MAIN: (24, 25)},
    NEW_MOUSE: {Tier.ORACLE: (22, 24), Tier.LIVE_MAIN: (20, 25), Tier.FINAL_MAIN: (21, 23)},
}
_PUBLIC_TIERS = {OLD_MOUSE: set(Tier), NEW_MOUSE: {Tier.TRAIN, Tier.ORACLE}}


def draw_video(number, num_frames=NUM_FRAMES):
    """Draw a video of smooth patches that move; the same number is the same video."""
    rng = np.random.default_rng([71, number])
    coarse = rng.random((num_frames // 8 + 2, 3, 5))
    times = np.arange(num_frames) / 8
    first = times.astype(int)
    share = (times - first)[:, None, None]
    slow = (1 - share) * coarse[first] + share * coarse[first + 1]
    return 255 * slow.repeat(FRAME_SHAPE[0] // 3, axis=1).repeat(FRAME_SHAPE[1] // 5, axis=2)


def plan_trials(session):
    """Return (tier, video number) of every trial: train clips once, the others two or three times."""
    trials = [(Tier.TRAIN, number) for number in range(_NUM_TRAIN)]
    for tier, numbers in _TEST_VIDEOS[session].items():
        trials += [(tier, numbers[0])] * 3 + [(tier, numbers[1])] * 2
    if session == OLD_MOUSE:
        trials.append((Tier.NONE, 20))
    order = np.random.default_rng([72, NUM_NEURONS[session]]).permutation(len(trials))
    return [trials[index] for index in order]


def draw_responses(video, behavior, *, weights, rng):
    """Draw activity that follows the video of five frames ago, scaled by the pupil; never exactly zero."""
    drive = np.einsum("thw,nhw->nt", video / 255 - 0.5, weights)
    delayed = np.concatenate([drive[:, :1].repeat(5, axis=1), drive[:, :-5]], axis=1)
    noise = rng.normal(0.0, 0.5, delayed.shape)
    return 20 * np.maximum(delayed + noise, 0) * behavior[0] / 50 + 1e-9


def write_mouse(folder: Path, *, seed=0, dtype=None, num_neurons=None):
    """Write one of the two mice; its name decides about neurons, tiers and dtype unless they are given."""
    session = folder.name
    num_neurons = num_neurons or NUM_NEURONS[session]
    rng = np.random.default_rng([73, seed, num_neurons])
    weights = rng.normal(0, 0.2, (num_neurons, *FRAME_SHAPE))
    writer = RawWriter(
        folder,
        num_padded_frames=NUM_PADDED_FRAMES,
        dtype=np.dtype(dtype or (np.float32 if session == OLD_MOUSE else np.float64)),
        unit_ids=np.arange(num_neurons) * 3 + 2,
        coordinates_um=rng.integers(-300, 300, (num_neurons, 3)),
    )
    trials = plan_trials(session)
    for index, (tier, number) in enumerate(trials):
        # A trial at times is a frame longer, and one array at times ends a frame early.
        num_frames = NUM_FRAMES + (index % 7 == 3)
        video = draw_video(number, num_frames)
        behavior = np.stack([50 + 5 * rng.normal(size=num_frames), rng.exponential(1.0, num_frames)])
        responses = draw_responses(video, behavior, weights=weights, rng=rng)
        writer.write_trial(
            index,
            tier=tier,
            video=video,
            behavior=behavior[:, : num_frames - (index % 9 == 5)],
            pupil=rng.normal(0, 4, (2, num_frames)) + 300,
            responses=responses if tier in _PUBLIC_TIERS[session] else None,
        )
    writer.finish(trial_idx=[str(index) for index in range(len(trials))] if session == NEW_MOUSE else None)
    return folder
