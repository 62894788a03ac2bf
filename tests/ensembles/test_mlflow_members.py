"""Runs that only MLflow still holds become members by their ids."""

import shutil

import pytest
from tiny_builds import build, tiny_plan
from training_runs import tiny_spec

from ensembles.builder import Progress
from ensembles.manifest import EnsembleManifest
from ensembles.recipes import RecipeOptions, make_members
from training.results import Outcome
from training.run import run
from training.tracking import RUN_TAG, Tracker

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def tracked(recordings, tmp_path_factory):
    """A root whose MLflow holds two runs and a third without a checkpoint; their folders are gone."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("root")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    states = {}
    for name, seed in (("first", 5), ("second", 6), ("empty", None)):
        folder = tmp_path_factory.mktemp(name)
        tracker = Tracker(folder / "spool", uri=uri, experiment="runs", run_id=name)
        if seed is not None:
            result = run(tiny_spec("factorized", epochs=1, seed=seed), recordings, folder / name)
            assert result.outcome is Outcome.FINISHED
            states[name] = (result.checkpoint / "state.pt").read_bytes()
            tracker.artifact(result.checkpoint, folder="checkpoint")
        assert tracker.finish("FINISHED", wait_seconds=120)
        shutil.rmtree(folder)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("runs")
    ids = {found.data.tags[RUN_TAG]: found.info.run_id
           for found in client.search_runs([experiment.experiment_id])}  # fmt: skip
    return root, ids, states


@pytest.fixture(autouse=True)
def _no_other_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def options(root, *runs):
    return RecipeOptions(arguments=runs, root=root)


def test_runs_named_by_their_mlflow_ids_are_built_of_without_training(tracked, recordings, tmp_path):
    root, ids, states = tracked
    members = make_members("members", options(root, ids["first"], ids["second"]))
    assert [member.spec.seed for member in members] == [5, 6]
    plan = tiny_plan(tmp_path / "build", members)
    epochs = []
    build(plan, recordings, progress=Progress(epoch=lambda name, _: epochs.append(name)))
    assert epochs == []
    manifest = EnsembleManifest.read(plan.folder)
    assert [of.checkpoint.verify(plan.folder).read_bytes() for of in manifest.members] == list(
        states.values()
    )


def test_a_copy_from_mlflow_that_was_interrupted_is_made_again(tracked):
    root, ids, states = tracked
    folder = root / "cache" / "mlflow" / ids["first"] / "checkpoint"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"half")
    (member,) = make_members("members", options(root, ids["first"]))
    assert (member.source / "state.pt").read_bytes() == states["first"]


def test_ids_that_mlflow_does_not_know_or_has_no_checkpoint_of_are_refused_in_words(tracked):
    root, ids, _ = tracked
    with pytest.raises(ValueError, match=f"run is {'0' * 32}, but sqlite.* does not hold it"):
        make_members("members", options(root, "0" * 32))
    with pytest.raises(ValueError, match=f"run is {ids['empty']}, but it logged no checkpoint"):
        make_members("members", options(root, ids["empty"]))
