import numpy as np
import pytest

from data.array_files import StoreError
from data.folds import select_trials
from data.loading import iterate_trials
from data.normalization import BASELINE, VIVIT_MIN_MAX, Normalization
from data.recording import Tier
from ensembles.official_responses import OfficialResponses


def normalized(recording, config):
    """Responses of the oracle trials as models are scored on them."""
    normalization = Normalization.fit(recording, config)
    trials = select_trials([recording], [Tier.ORACLE])
    for clip in iterate_trials([recording], trials, max_trial_frames=300):
        yield int(clip.trial[0]), normalization(clip).responses[0].numpy()


def test_responses_are_in_the_unit_that_training_scores_in(recordings):
    for recording in recordings:
        trial_of = {trial.index: trial for trial in recording.trials}
        responses = OfficialResponses(recording)
        num_neurons = len(recording.neurons.ids)
        seen = 0
        for index, wanted in normalized(recording, BASELINE):
            stop = wanted.shape[1]
            everything = responses.read(trial_of[index], 0, stop, slice(0, num_neurons))
            np.testing.assert_allclose(everything, wanted, rtol=1e-6)
            part = responses.read(trial_of[index], 3, stop - 2, slice(1, 3))
            np.testing.assert_array_equal(part, everything[1:3, 3 : stop - 2])
            seen += 1
        assert seen > 0


def test_without_official_statistics_they_are_those_of_the_train_tier(recording, monkeypatch):
    def missing(variable, name):
        raise StoreError("no statistics")

    trial_of = {trial.index: trial for trial in recording.trials}
    wanted = dict(normalized(recording, VIVIT_MIN_MAX))
    monkeypatch.setattr(recording, "statistics", missing)
    responses = OfficialResponses(recording)
    for index, values in wanted.items():
        found = responses.read(trial_of[index], 0, values.shape[1], slice(0, len(recording.neurons.ids)))
        np.testing.assert_allclose(found, values, rtol=1e-5)


def test_withheld_responses_are_refused(recordings):
    withheld = [(r, trial) for r in recordings for trial in r.trials if not trial.has_responses]
    if not withheld:
        pytest.skip("the tiny recordings withhold nothing")
    recording, trial = withheld[0]
    with pytest.raises(
        ValueError, match=f"responses of trial {trial.index} of {recording.session} are withheld"
    ):
        OfficialResponses(recording).read(trial, 0, 10, slice(0, 2))
