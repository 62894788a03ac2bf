"""Rates of a population: how strongly its drive acts, solved so that a wanted share of variance is signal."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float

from data.calcium import SAMPLE_RATE_HZ, interpolation_matrix, trace_variance
from data.population import Cells

LARGEST_GAIN = 3.0
"""Signal power falls again beyond it: rare events of huge rate are mostly noise."""
LARGEST_DRIVE = 5.0
"""Standard deviations; without a limit a rare stimulus would give rates no neuron has."""
_BISECTIONS = 24
_MAX_CELLS = 400
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Presentation:
    """One showing of a calibration video.

    Attributes:
        video: which one (any number).
        drive: sampled at 8 Hz.
        modulators: running, pupil and slow gain at the same samples.
        num_frames: its length at 30 Hz.
        phase: as in ``calcium.sample_times``.
    """

    video: int
    drive: Float[np.ndarray, "n s"]
    modulators: Float[np.ndarray, "3 s"]
    num_frames: int
    phase: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuning:
    """What turns a drive into events per sample: ``base * exp(gain * z)``.

    ``z`` is the drive standardized by ``center`` and ``spread``, which saturates at ``LARGEST_DRIVE``.

    Attributes:
        gain: exponent; the larger, the more of the variance is signal.
        base: events per sample of each neuron at its mean drive.
        center: mean drive over the calibration videos.
        spread: its standard deviation.
    """

    gain: float
    base: Float[np.ndarray, " n"]
    center: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]

    def stimulus_rates(self, drive: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
        """Return events per sample before running, pupil and slow gain."""
        standard = (drive - self.center[:, None]) / self.spread[:, None]
        saturated = LARGEST_DRIVE * np.tanh(standard / LARGEST_DRIVE)
        rates: Float[np.ndarray, "n s"] = self.base[:, None] * np.exp(self.gain * saturated)
        return rates


def modulation_gain(cells: Cells, modulators: Float[np.ndarray, "3 s"]) -> Float[np.ndarray, "n s"]:
    """Return the factor by which running, pupil and slow gain multiply each neuron's rate."""
    gain: Float[np.ndarray, "n s"] = np.exp(cells.modulation @ modulators)
    return gain


def tune(presentations: Sequence[Presentation], cells: Cells, *, signal_power: float) -> Tuning:
    """Find the gain that gives the wanted signal power by bisection, and the base rates that go with it.

    Args:
        presentations: repeats of calibration videos, each with its own gaze and behavior.
        cells: the neurons, whose mean event rates are met.
        signal_power: mean over neurons of the share of single-trial variance that repeats with the video.
    """
    # A few hundred cells tell the mean signal power as well as thousands do.
    some = np.arange(0, len(cells.scale), max(1, len(cells.scale) // _MAX_CELLS))
    shown_to_some = [replace(shown, drive=shown.drive[some]) for shown in presentations]
    some_cells = Cells(**{field.name: getattr(cells, field.name)[some] for field in fields(cells)})
    low, high = 0.0, LARGEST_GAIN
    reachable = expected_signal_power(tuning_at(high, shown_to_some, some_cells), shown_to_some, some_cells)
    if not 0 < signal_power <= reachable:
        raise ValueError(
            f"signal_power is {signal_power}, "
            f"but must be above 0 and at most {reachable:.2f} with these videos"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        power = expected_signal_power(tuning_at(middle, shown_to_some, some_cells), shown_to_some, some_cells)
        low, high = (middle, high) if power < signal_power else (low, middle)
    return tuning_at(high, presentations, cells)


def tuning_at(gain: float, presentations: Sequence[Presentation], cells: Cells) -> Tuning:
    """Return the tuning of one gain: drive standardized, and every neuron at its mean event rate."""
    drive = np.concatenate([shown.drive for shown in presentations], axis=1)
    tuning = Tuning(
        gain=gain,
        base=np.ones(len(drive)),
        center=drive.mean(axis=1),
        spread=np.maximum(drive.std(axis=1), _SMALLEST_SPREAD),
    )
    total = np.zeros(len(drive))
    for shown in presentations:
        total += (tuning.stimulus_rates(shown.drive) * modulation_gain(cells, shown.modulators)).sum(axis=1)
    return replace(tuning, base=cells.events_per_second / SAMPLE_RATE_HZ * drive.shape[1] / total)


def expected_signal_power(tuning: Tuning, presentations: Sequence[Presentation], cells: Cells) -> float:
    """Return the share of single-trial variance that repeats with the video, mean over neurons.

    From the rates alone, without drawing an event: what two repeats of a video have in common is the
    covariance of their rates, and the variance of the events around the rates is known in closed form.
    """
    by_video: dict[int, list[Float[np.ndarray, "n t"]]] = {}
    noise = []
    for shown in presentations:
        rates = tuning.stimulus_rates(shown.drive) * modulation_gain(cells, shown.modulators)
        trace = rates @ interpolation_matrix(shown.num_frames, shown.phase)
        by_video.setdefault(shown.video, []).append(trace)
        noise.append(trace_variance(rates, num_frames=shown.num_frames, phase=shown.phase))
    traces = [trace for repeats in by_video.values() for trace in repeats]
    mean = np.concatenate(traces, axis=1).mean(axis=1, keepdims=True)
    total = np.concatenate(traces, axis=1).var(axis=1) + np.concatenate(noise, axis=1).mean(axis=1)
    shared = [
        (one - mean) * (other - mean)
        for repeats in by_video.values()
        for one, other in combinations(repeats, 2)
    ]
    return float((np.concatenate(shared, axis=1).mean(axis=1) / total).mean())
