import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hpo_search import EPOCHS, FastObjective, open_study, search
from optuna.trial import TrialState

from hpo.space import Ask, Bounds
from hpo.spaces import SPACES
from hpo.study import StudyError
from training.names import with_values
from training.recipes import recipe
from training.results import Outcome

TABLE_3 = {
    "model.embedding_dim": (8, 512, 8),
    "optimizer.core_lr": (1e-4, 1e-2, None),
    "model.patch_dropout": (0.0, 0.5, None),
    "model.drop_path": (0.0, 0.5, None),
    "optimizer.core_weight_decay": (0.0, 1.0, None),
    "loader.batch_size": (1, 64, 1),
    "model.spatial_depth": (1, 8, 1),
    "model.spatial_patch_size": (3, 16, 1),
    "model.temporal_depth": (1, 8, 1),
    "model.temporal_patch_size": (1, 50, 1),
    "model.num_heads": (1, 16, 1),
    "model.head_dim": (8, 512, 8),
    "model.attention_dropout": (0.0, 0.5, None),
    "model.ff_dim": (8, 512, 8),
    "model.ff_dropout": (0.0, 0.5, None),
}
CHOICES = {
    "model.position_encoding": ("none", "learnable", "sinusoidal"),
    "model.ff_activation": ("tanh", "sigmoid", "elu", "gelu", "swiglu"),
}


def sampled(number):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    trial = study.ask()
    ask = Ask(trial)
    SPACES["vivit"]["full"](ask)
    return ask, trial


def test_the_vivit_space_is_table_3_to_the_letter():
    ask, trial = sampled(0)
    ranges = trial.distributions
    for name, (low, high, step) in TABLE_3.items():
        found = ranges[name]
        assert (found.low, found.high, found.step) == (low, high, step), name
    assert ranges["optimizer.core_lr"].log
    for name, choices in CHOICES.items():
        assert ranges[name].choices == choices
    for axis in ("spatial", "temporal"):
        stride = ranges[f"model.{axis}_patch_stride"]
        assert (stride.low, stride.high) == (1, ask.values[f"model.{axis}_patch_size"])
    others = {f"model.{axis}_patch_stride" for axis in ("spatial", "temporal")}
    readout = {"optimizer.readout_lr", "optimizer.readout_weight_decay"}
    assert set(ranges) == TABLE_3.keys() | CHOICES.keys() | others | readout


def test_500_points_of_the_space_are_runs():
    for number in range(500):
        ask, _ = sampled(number)
        assert with_values(recipe("vivit"), ask.values).model.warmup_frames < 50


def test_the_published_values_are_the_first_run(tmp_path):
    trials = search(tmp_path, total=1)
    assert trials[0].params["optimizer.core_lr"] == recipe("vivit").optimizer.core_lr
    assert trials[0].state is TrialState.COMPLETE


def test_the_same_seed_searches_the_same_points(tmp_path):
    one, same, other = (
        [trial.params for trial in search(tmp_path / name, total=12, seed=seed)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    assert one != other


def test_a_stopped_run_is_pruned_with_its_whole_curve(tmp_path):
    trials = search(tmp_path, total=15)
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert (trial.state is TrialState.COMPLETE) == (len(trial.intermediate_values) == EPOCHS)


def test_a_failed_run_has_no_score_and_its_reason(tmp_path):
    trials = search(
        tmp_path,
        total=2,
        objective=FastObjective(log=tmp_path / "log", outcome=Outcome.FAILED),
        pruner="none",
    )
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.FAIL]
    assert trials[0].values is None
    assert trials[0].user_attrs["reason"] == "it broke"


def test_raising_the_total_extends_a_study(tmp_path):
    first = search(tmp_path, total=3)
    more = search(tmp_path, total=6)
    assert len(more) == 6
    assert [trial.params for trial in more[:3]] == [trial.params for trial in first]


def test_a_second_driver_is_refused(tmp_path):
    study = open_study(tmp_path)
    with pytest.raises(StudyError, match="driven by another process"):
        open_study(tmp_path)
    study.close()
    open_study(tmp_path).close()


def test_a_study_of_other_recordings_is_refused(tmp_path):
    open_study(tmp_path).close()
    with pytest.raises(StudyError, match="another recordings: a -> b"):
        open_study(tmp_path, identity={"recordings": "b"})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds(pinned={"model.num_heads": "9"}), "num_heads is 9, but the space goes from 1 to 4"),
        (Bounds(pinned={"model.num_head": "2"}), "did you mean model.num_heads"),
        (Bounds(narrowed={"optimizer.core_lr": (0.001, 0.1)}), "the space goes from 0.0001 to 0.01"),
    ],
)
def test_what_lies_outside_the_space_is_refused_with_its_range(tmp_path, bounds, message):
    with pytest.raises(ValueError, match=message):
        open_study(tmp_path, bounds=bounds)


def test_pinned_and_narrowed_values_hold_in_every_run(tmp_path):
    bounds = Bounds(pinned={"model.num_heads": "3"}, narrowed={"optimizer.core_lr": (0.002, 0.006)})
    for trial in search(tmp_path, total=8, bounds=bounds):
        assert "model.num_heads" not in trial.params
        assert 0.002 <= trial.params["optimizer.core_lr"] <= 0.006


@pytest.mark.timeout(180)
def test_a_driver_killed_again_and_again_loses_and_repeats_nothing(tmp_path):
    total = 10
    script = Path(__file__).parents[1] / "hpo_search.py"
    pauses = random.Random(0)
    for _ in range(5):
        with subprocess.Popen([sys.executable, str(script), str(tmp_path), str(total)]) as process:
            while process.poll() is None and not (tmp_path / "log").exists():
                time.sleep(0.01)
            time.sleep(pauses.uniform(0.0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
    trials = search(tmp_path, total=total)
    assert len(trials) == total
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines))
    for trial in trials:
        trained = [line for line in lines if line.startswith(f"{trial.number:04d} ")]
        assert len(trained) >= len(trial.intermediate_values) >= 1
