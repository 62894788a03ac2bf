"""The best score there is on simulated recordings: that of the true rates themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.folds import Trials
from data.loading import iterate_trials
from data.normalization import BASELINE, Normalization
from data.recording import Recording
from data.truth import FOLDER, Gain, Truth
from training.metrics import BURN_IN_FRAMES, Score, ScoreAccumulator, SessionScore, combine, count_repeats


def open_truths(simulated: Path, recordings: Sequence[Recording]) -> dict[str, Truth]:
    """Open what ``data/simulate.py`` stored beside the recordings in a folder, by session.

    Raises:
        RecordingError: there is no truth of a session.
    """
    return {recording.session: Truth(simulated / FOLDER / recording.session) for recording in recordings}


def known_ceiling(
    recordings: Sequence[Recording],
    truths: Mapping[str, Truth],
    trials: Trials,
    *,
    gain: Gain = "behavior",
    burn_in_frames: int = BURN_IN_FRAMES,
) -> Score:
    """Score the true rates as if they were a model's predictions, in the same unit and on the same frames.

    It is a little above what a model can reach: the truth knows where in a trial the microscope took its
    samples, and where exactly the eye looked.

    Args:
        recordings: sessions of the trials.
        truths: of the sessions.
        trials: what to score, by session; trials with responses.
        gain: what the predictions know of the gain, see ``Truth.expected_responses``; a model that is shown
            behavior can know running and pupil.
        burn_in_frames: leading frames of a trial that are not scored.
    """
    scores: dict[str, SessionScore] = {}
    for recording in recordings:
        normalization = Normalization.fit(recording, BASELINE)
        accumulator = ScoreAccumulator(
            recording.session,
            len(recording.neurons.ids),
            repeats=count_repeats(trials[recording.session]),
            burn_in_frames=burn_in_frames,
        )
        by_index = {trial.index: trial for trial in trials[recording.session]}
        for raw in iterate_trials([recording], {recording.session: trials[recording.session]}):
            trial = by_index[int(raw.trial[0])]
            responses = normalization(raw).responses
            if responses is None:
                raise ValueError(f"responses of trial {trial.index} of {recording.session} are withheld")
            true = truths[recording.session].expected_responses(trial.index, gain=gain)
            precision = normalization.precision[raw.frames[0].clamp(max=len(normalization.precision) - 1)]
            accumulator.update(
                true * precision.numpy().T,
                responses[0].numpy(),
                trial=trial.index,
                video_id=trial.video_id,
                stimulus=trial.stimulus,
            )
        scores[recording.session] = accumulator.result()
    return combine(scores)
