"""Runs on Ray, in every way they can be executed, and what breaks there."""

import os
import re
from pathlib import Path

import pytest
from hpo_search import EPOCHS, FastObjective, TroubledObjective, read_log, search_on_ray, suggest_two, told
from optuna.trial import TrialState
from training_runs import tiny_spec

from hpo.cluster import ClusterConfig, start_ray
from hpo.lanes import LANES, choose_lane
from hpo.objective import make_objective

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def ray():
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Workers unpickle what is defined in this folder.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        start_ray(ClusterConfig(slots=2))
        yield ray
        ray.shutdown()


TROUBLES = {1: "raises", 3: "dies once", 4: "is not a number"}
MORE_TROUBLES = TROUBLES | {2: "dies", 5: "is slow", 6: "needs memory", 7: "hangs"}


# A group of workers takes seconds to start again, an actor less.
@pytest.mark.parametrize(("lane", "troubles"), [("actors", MORE_TROUBLES), ("warm", TROUBLES)])
def test_runs_that_break_end_as_what_they_are_and_the_search_goes_on(ray, tmp_path, lane, troubles):
    objective = TroubledObjective(log=tmp_path / "log", troubles=troubles)
    config = ClusterConfig(slots=2, lane=lane, max_restarts=1)
    trials, driver = search_on_ray(tmp_path, total=10, objective=objective, config=config, pruner="none")
    ended = {
        trial.number: (trial.state, trial.user_attrs.get("outcome"), len(trial.intermediate_values))
        for trial in trials
    }
    expected = dict.fromkeys(range(10), (TrialState.COMPLETE, "finished", EPOCHS))
    expected[1] = (TrialState.FAIL, "failed", 1)
    expected[4] = (TrialState.PRUNED, "pruned", 2)
    if 2 in troubles:
        expected[2] = (TrialState.FAIL, "failed", 1)
        # Ray's error by name, or what Tune has noted of it, whichever is there first.
        assert re.match(r"its process died 2 times: .*(ActorDiedError|died)", trials[2].user_attrs["reason"])
    if 7 in troubles:
        expected[7] = (TrialState.FAIL, "failed", 1)
        assert trials[7].user_attrs["reason"].startswith("it finished no epoch for 0:00:00.5")
        # It would hang again.
        assert len((tmp_path / "study/runs/0007/attempts").read_text().split()) == 1
        assert "hpo_search.py" in (tmp_path / "study/runs/0007/hung.txt").read_text()
    assert driver.stopping is None
    assert ended == expected
    assert trials[1].user_attrs["reason"] == "KeyError: 'a bug'"
    assert trials[4].user_attrs["reason"] == "the score is not a number"
    trained = [tuple(line) for line in read_log(tmp_path / "log")]
    assert len(trained) == len(set(trained))


def test_a_lane_is_chosen_by_workers_and_length_and_can_be_asked_for():
    assert choose_lane("auto", workers_per_run=1, is_short=False).lane == "actors"
    assert choose_lane("auto", workers_per_run=2, is_short=True).lane == "warm"
    assert choose_lane("auto", workers_per_run=2, is_short=False).lane == "train"
    for lane in LANES:
        assert choose_lane(lane, workers_per_run=1, is_short=True).lane == lane
    with pytest.raises(ValueError, match="an actor is one process"):
        choose_lane("actors", workers_per_run=2, is_short=True)
    with pytest.raises(ValueError, match="did you mean train"):
        choose_lane("trian", workers_per_run=1, is_short=True)


def test_more_runs_than_slots_of_which_most_are_stopped_early(ray, tmp_path):
    objective = FastObjective(log=tmp_path / "log")
    config = ClusterConfig(slots=2, lane="actors")
    trials, _ = search_on_ray(tmp_path, total=12, objective=objective, config=config)
    states = [trial.state for trial in trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states.count(TrialState.PRUNED) >= 6
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))


def test_every_lane_gives_the_same_numbers_and_frees_its_workers(ray, recordings, tmp_path):
    told_by = {}
    for lane in LANES:
        # One slot: were the workers of the stopped run not freed, the next would wait forever.
        config = ClusterConfig(slots=1, lane=lane)
        told_by[lane] = told(
            search_on_ray(
                tmp_path / lane,
                total=3,
                objective=make_objective(config, recordings, select_on="holdout"),
                config=config,
                pruner="asha",
                sampler="random",
                seed=0,
                base=tiny_spec(),
                suggest=suggest_two,
                epochs=2,
            )[0]
        )
    assert told_by["actors"] == told_by["warm"]
    assert told_by["actors"] == told_by["train"]
    assert [len(run[-1]) for run in told_by["actors"]] == [2, 1, 2]
