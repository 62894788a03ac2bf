"""What a recording is: one mouse, one imaging session, many trials of video and activity."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int


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
