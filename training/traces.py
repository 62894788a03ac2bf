"""Predicted beside recorded activity of the neurons in the middle of the ranking."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.folds import Trials
from data.recording import Recording
from models.encoder import Encoder
from training.material import Material
from training.metrics import BURN_IN_FRAMES, ScoreAccumulator, count_repeats
from training.pictures import draw_traces, median_neurons
from training.predict import predictions


def draw_median_neurons(encoder: Encoder, material: Material, path: Path) -> Path | None:
    """Draw the five neurons of median score over a hold-out trial of the first session.

    Returns:
        The PNG file; None when nothing is held out.
    """
    recording = _first_scored(material.recordings, material.choosing)
    if recording is None:
        return None
    trials = material.choosing[recording.session]
    accumulator = ScoreAccumulator(
        recording.session, len(recording.neurons.ids), repeats=count_repeats(trials)
    )
    shown: tuple[np.ndarray, np.ndarray] | None = None
    for _, trial, predicted, responses in predictions(
        encoder,
        [recording],
        {recording.session: trials},
        normalizations=material.normalizations,
        inference=material.spec.inference,
        compute=material.spec.compute,
        while_training=True,
    ):
        assert responses is not None
        accumulator.update(
            predicted, responses, trial=trial.index, video_id=trial.video_id, stimulus=trial.stimulus
        )
        if shown is None:
            first = max(responses.shape[1] - predicted.shape[1], BURN_IN_FRAMES)
            shown = (
                responses[:, first:],
                predicted[:, first - (responses.shape[1] - predicted.shape[1]) :],
            )
    assert shown is not None
    scores = accumulator.result().neurons.single_trial
    chosen = median_neurons(scores)
    return draw_traces(
        shown[0][chosen],
        shown[1][chosen],
        path,
        neurons=np.asarray(recording.neurons.ids)[chosen],
        correlations=scores[chosen],
        frame_rate_hz=recording.frame_rate_hz,
        title=f"{recording.session}: five neurons of median score, a hold-out trial",
    )


def _first_scored(recordings: Sequence[Recording], trials: Trials) -> Recording | None:
    return next((recording for recording in recordings if trials.get(recording.session)), None)
