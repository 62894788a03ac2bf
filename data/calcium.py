"""From event rates to "deconvolved" calcium traces: sparse events at 8 Hz, interpolated linearly to 30 Hz.

The traces of Sensorium 2023 are isolated triangles 0.25 s wide at the base, over a silence of about 1e-9.
"""

import numpy as np
from jaxtyping import Float, Float32

from data.raw_format import FRAME_RATE_HZ

SAMPLE_RATE_HZ = 8
FRAMES_PER_SAMPLE = FRAME_RATE_HZ / SAMPLE_RATE_HZ
LATENCY_FRAMES = 0.08 * FRAME_RATE_HZ
LEAD_FRAMES = 10
"""Frames before a trial that its first sample looks at: two sample intervals and the latency, rounded up."""

AMPLITUDE_SHAPE = 1.25
"""Gamma shape of an event's amplitude, whose mean is 1 and variance 1 / shape."""
SILENCE = 1e-9
_SUBSAMPLES = 4


def sample_times(num_frames: int, phase: float) -> Float[np.ndarray, " s"]:
    """Return when samples were taken, frames; the first is just before the trial, the last at its end.

    Args:
        num_frames: length of the trial.
        phase: 0..1, where the trial's start fell between two samples.
    """
    first = (phase - 1) * FRAMES_PER_SAMPLE
    num_samples = int(np.ceil((num_frames - 1 - first) / FRAMES_PER_SAMPLE)) + 1
    return first + FRAMES_PER_SAMPLE * np.arange(num_samples)


def averaging_matrix(
    num_frames: int, phase: float, *, latency_frames: float = LATENCY_FRAMES
) -> Float32[np.ndarray, "t_lead s"]:
    """Return what averages a drive, which starts ``LEAD_FRAMES`` early, over each sample's 1/8 s.

    Args:
        num_frames: length of the trial.
        phase: as in ``sample_times``.
        latency_frames: from the drive to its events; at most ``LATENCY_FRAMES``.
    """
    back = latency_frames + FRAMES_PER_SAMPLE * (np.arange(_SUBSAMPLES) + 0.5) / _SUBSAMPLES
    looked_at = LEAD_FRAMES + sample_times(num_frames, phase)[None, :] - back[:, None]
    # The last sample is taken after the trial, where the last frame stays on.
    looked_at = np.minimum(looked_at, LEAD_FRAMES + num_frames - 1)
    frames = np.arange(LEAD_FRAMES + num_frames)[:, None, None]
    weights = np.maximum(0, 1 - np.abs(frames - looked_at[None])).mean(axis=1)
    matrix: Float32[np.ndarray, "t_lead s"] = weights.astype(np.float32)
    return matrix


def interpolation_matrix(num_frames: int, phase: float) -> Float32[np.ndarray, "s t"]:
    """Return what interpolates samples linearly at the frames of the trial."""
    distance = np.abs(sample_times(num_frames, phase)[:, None] - np.arange(num_frames)[None, :])
    return np.maximum(0, 1 - distance / FRAMES_PER_SAMPLE).astype(np.float32)


def expected_trace(
    rates: Float[np.ndarray, "n s"], *, scale: Float[np.ndarray, " n"], num_frames: int, phase: float
) -> Float32[np.ndarray, "n t"]:
    """Return the mean of ``draw_trace`` over its randomness: the best prediction there is for known rates.

    Args:
        rates: expected events per sample.
        scale: response units per event.
        num_frames: length of the trial.
        phase: as in ``sample_times``.
    """
    trace: Float32[np.ndarray, "n t"] = (rates * scale[:, None]).astype(np.float32) @ interpolation_matrix(
        num_frames, phase
    )
    return trace


def draw_trace(
    rates: Float[np.ndarray, "n s"],
    *,
    scale: Float[np.ndarray, " n"],
    num_frames: int,
    phase: float,
    generator: np.random.Generator,
) -> Float32[np.ndarray, "n t"]:
    """Draw responses: Poisson events of gamma-distributed amplitude, interpolated, plus 1e-9 of noise."""
    events = generator.poisson(rates)
    activity = np.zeros(rates.shape, np.float32)
    fired = events > 0
    activity[fired] = generator.standard_gamma(AMPLITUDE_SHAPE * events[fired]) / AMPLITUDE_SHAPE
    trace = expected_trace(activity, scale=scale, num_frames=num_frames, phase=phase)
    trace += np.float32(SILENCE) * generator.standard_normal(trace.shape, dtype=np.float32)
    return trace


def trace_variance(
    rates: Float[np.ndarray, "n s"], *, num_frames: int, phase: float
) -> Float[np.ndarray, "n t"]:
    """Return the variance of ``draw_trace`` around its mean, at scale 1 (a compound Poisson process)."""
    weights = np.square(interpolation_matrix(num_frames, phase))
    variance: Float[np.ndarray, "n t"] = (1 + 1 / AMPLITUDE_SHAPE) * rates @ weights
    return variance
