"""What kind of video a trial showed, from its pixels: a natural movie or one of the five other classes.

The rules are the classes' own structure as measured in Sensorium 2023: dots and gratings stand on grey 128,
frames of the Gaussian class have one dot, black or white, gratings stay inside a central patch, images
alternate with grey gaps, and pink noise comes in segments of 27 frames with grey levels symmetric about grey.
"""

import numpy as np
from jaxtyping import Bool, UInt8

from data.recording import Stimulus

_GREY = 128
_GREY_TOLERANCE = 2
_MIN_BACKGROUND_SHARE = 0.2
_GAP_SHARE = (0.15, 0.85)
_ONE_POLARITY_SHARE = 0.9
_PINK_NOISE_SEGMENT_FRAMES = 27


def classify_video(frames: UInt8[np.ndarray, "t h w"]) -> Stimulus:
    """Tell the class of a video.

    Args:
        frames: grey levels of the valid frames.
    """
    # Unsigned wrap-around makes one comparison of two.
    is_grey = frames - np.uint8(_GREY - _GREY_TOLERANCE) <= 2 * _GREY_TOLERANCE
    grey_share = is_grey.mean(axis=(1, 2))
    is_gap = grey_share == 1
    if is_gap.all():
        return Stimulus.MOVIE
    has_background = float(np.median(grey_share[~is_gap])) >= _MIN_BACKGROUND_SHARE
    if has_background:
        return _classify_on_grey(frames, is_grey)
    if _GAP_SHARE[0] <= is_gap.mean() <= _GAP_SHARE[1]:
        return Stimulus.IMAGES
    return Stimulus.PINK_NOISE if _is_pink_noise(frames) else Stimulus.MOVIE


def _classify_on_grey(frames: UInt8[np.ndarray, "t h w"], is_grey: Bool[np.ndarray, "t h w"]) -> Stimulus:
    is_darker = frames.min(axis=(1, 2)) < _GREY - 4 * _GREY_TOLERANCE
    is_brighter = frames.max(axis=(1, 2)) > _GREY + 4 * _GREY_TOLERANCE
    if (is_darker ^ is_brighter).mean() >= _ONE_POLARITY_SHARE:
        return Stimulus.GAUSSIAN_DOTS
    rows, columns = max(1, frames.shape[1] // 9), max(1, frames.shape[2] // 9)
    edges = (is_grey[:, :rows], is_grey[:, -rows:], is_grey[:, :, :columns], is_grey[:, :, -columns:])
    return Stimulus.GABOR if all(edge.all() for edge in edges) else Stimulus.RANDOM_DOTS


def _is_pink_noise(frames: UInt8[np.ndarray, "t h w"]) -> bool:
    remainder = (len(frames) + 1) % _PINK_NOISE_SEGMENT_FRAMES
    if remainder > 2:
        return False
    levels = frames.astype(np.float32)
    deviation = levels - levels.mean()
    std = float(np.sqrt(np.square(deviation).mean()))
    skewness = float((deviation**3).mean()) / max(std, 1e-6) ** 3
    return abs(float(levels.mean()) - 127.5) < 30 and abs(skewness) < 0.6 and int(np.ptp(frames)) >= 200
