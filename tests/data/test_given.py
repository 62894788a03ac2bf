import json
from dataclasses import replace

import numpy as np

import data.given
from data.experiment import SimulationConfig
from data.given import given_recordings

SMALL = SimulationConfig(
    mice=1,
    neurons=2,
    frame_shape=(8, 8),
    train_clips=2,
    videos_per_tier=1,
    repeats=2,
    clip_frames=20,
    signal_power=0.05,
)


def test_an_update_of_the_simulation_makes_new_recordings_and_leaves_the_old_ones_alone(
    tmp_path, monkeypatch
):
    def given(config):
        monkeypatch.setattr(data.given.SimulationConfig, "for_scale", lambda _: config)
        return given_recordings(None, tmp_path)

    before, source = given(SMALL)
    assert source.startswith("simulated (none were given), in ")
    after, other = given(replace(SMALL, signal_power=0.08))
    assert source != other
    assert [recording.session for recording in before] == [recording.session for recording in after]
    assert before[0].fingerprint != after[0].fingerprint
    again, same = given(SMALL)
    assert same == source
    assert [recording.fingerprint for recording in again] == [recording.fingerprint for recording in before]
    np.testing.assert_array_equal(
        again[0].responses(again[0].trials[0]), before[0].responses(before[0].trials[0])
    )
    folders = sorted(path.name for path in tmp_path.glob("recordings-demo-*"))
    assert len(folders) == 2
    settings = [
        json.loads(path.read_text()) for path in tmp_path.glob("recordings-demo-*/truth/*/settings.json")
    ]
    assert sorted(each["signal_power"] for each in settings) == [0.05, 0.08]
