"""Scores: two correlations per neuron of a session, and their means over sessions and stimulus classes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from data.recording import Stimulus
from training.scored_frames import ScoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlations:
    """The two correlations of the benchmark, averaged over neurons.

    Attributes:
        single_trial: with the response of every single presentation.
        to_average: between the means over the repeats of each video.
    """

    single_trial: float
    to_average: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeuronCorrelations:
    """The two correlations of each neuron of one session.

    Attributes:
        single_trial: over all frames of all trials together; 0 for a constant neuron.
        to_average: over all frames of all videos together, after averaging repeats; 0 for a constant neuron.
        constant: neurons whose responses or predictions never change (or have no valid frame).
        num_frames: scored frames of all trials.
        num_videos: different videos among the trials.
    """

    single_trial: Float[np.ndarray, " n"]
    to_average: Float[np.ndarray, " n"]
    constant: Bool[np.ndarray, " n"]
    num_frames: int
    num_videos: int

    @property
    def mean(self) -> Correlations:
        """The mean over neurons."""
        return _mean([self])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionScore:
    """The score of one session, neuron by neuron.

    Attributes:
        session: name of the recording.
        neurons: over all scored trials.
        by_stimulus: over the trials of each stimulus class that occurred.
        num_masked: pairs of neuron and frame left out because the response is NaN.
    """

    session: str
    neurons: NeuronCorrelations
    by_stimulus: Mapping[Stimulus, NeuronCorrelations]
    num_masked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score over all sessions.

    Attributes:
        single_trial: the headline: mean over the neurons of all sessions together.
        to_average: the same for the correlation to average.
        by_session: means over the neurons of each session.
        by_stimulus: means over the neurons of all sessions that showed a stimulus class.
        bonus: mean over the out-of-distribution classes that occurred, None without any.
        num_constant: neurons that count as 0 because their responses or predictions never change.
        num_neurons: neurons of all sessions.
        num_frames: scored frames of all sessions.
        num_masked: pairs of neuron and frame left out because the response is NaN.
    """

    single_trial: float
    to_average: float
    by_session: Mapping[str, Correlations]
    by_stimulus: Mapping[Stimulus, Correlations]
    bonus: Correlations | None
    num_constant: int
    num_neurons: int
    num_frames: int
    num_masked: int


def combine(scores: Mapping[str, SessionScore]) -> Score:
    """Pool the neurons of all sessions, as the benchmark does.

    Args:
        scores: by session.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, section 4: eq. 1 (single trial), eq. 2 (to average), both
        averaged over all neurons; the bonus score is the mean over the out-of-distribution classes.
    """
    if not scores:
        raise ScoreError("scores are empty, but must hold at least one session")
    sessions = list(scores.values())
    by_stimulus = {
        stimulus: _mean([s.by_stimulus[stimulus] for s in sessions if stimulus in s.by_stimulus])
        for stimulus in Stimulus
        if any(stimulus in s.by_stimulus for s in sessions)
    }
    overall = _mean([score.neurons for score in sessions])
    unusual = [value for stimulus, value in by_stimulus.items() if stimulus != Stimulus.MOVIE]
    bonus = (
        Correlations(
            single_trial=float(np.mean([value.single_trial for value in unusual])),
            to_average=float(np.mean([value.to_average for value in unusual])),
        )
        if unusual
        else None
    )
    return Score(
        single_trial=overall.single_trial,
        to_average=overall.to_average,
        by_session={name: score.neurons.mean for name, score in scores.items()},
        by_stimulus=by_stimulus,
        bonus=bonus,
        num_constant=sum(int(score.neurons.constant.sum()) for score in sessions),
        num_neurons=sum(len(score.neurons.constant) for score in sessions),
        num_frames=sum(score.neurons.num_frames for score in sessions),
        num_masked=sum(score.num_masked for score in sessions),
    )


def _mean(parts: Iterable[NeuronCorrelations]) -> Correlations:
    parts = list(parts)
    return Correlations(
        single_trial=float(np.concatenate([part.single_trial for part in parts]).mean()),
        to_average=float(np.concatenate([part.to_average for part in parts]).mean()),
    )
