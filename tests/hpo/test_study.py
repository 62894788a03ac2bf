import pytest
from hpo_search import EPOCHS, FastObjective, open_study, search
from optuna.trial import TrialState

from hpo.space import Bounds
from hpo.study import StudyError
from training.recipes import recipe
from training.results import Outcome


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
