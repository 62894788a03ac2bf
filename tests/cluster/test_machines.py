"""Searches and runs over several of Ray's simulated machines: two that train, one that is lost, none left."""

import fcntl
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hpo_search import EPOCHS, open_study
from noting_runs import Noting
from training_runs import tiny_spec

from hpo.cluster import ClusterConfig, run_on_ray
from hpo.driver import Driver, Limits
from hpo.identity import StudyError
from training.nodes import StorageError, read_markers, require_shared, write_marker
from training.results import Outcome
from training.run import run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

long = pytest.mark.skipif("STRIATE_LONG_TESTS" not in os.environ, reason="set STRIATE_LONG_TESTS=1")


@pytest.fixture(scope="module")
def machines():
    """A head without cores and two machines of two cores each."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    # A killed process refuses at once and is missed after 6 s; one on a busy machine may take its time.
    for name, value in {"period_ms": 1000, "failure_threshold": 6, "timeout_ms": 10000}.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # Workers import the runs from where the tests are.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000},
    )
    cluster.workers = [cluster.add_node(num_cpus=2, object_store_memory=80_000_000) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    monkeypatch.undo()


def notes(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def drive(root, *, runs, seconds, on_idle=lambda: None, **config):
    study = open_study(root, pruner="none")
    driver = Driver(study, Limits(runs=runs))
    try:
        run_on_ray(
            driver, Noting(log=root / "log", seconds=seconds), ClusterConfig(**config), on_idle=on_idle
        )
        return study.trials()
    finally:
        study.close()


def assert_all_trained_once(trials, noted, *, runs):
    """All runs finished with all epochs; a run that was lost went on from its folder."""
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * runs
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    trained = [(folder, epoch) for folder, epoch, _, _ in noted]
    assert sorted(trained) == sorted(set(trained))
    assert len(trained) == runs * EPOCHS


@pytest.mark.parametrize("lane", ["actors", "warm"])
def test_a_search_that_no_machine_has_room_for_ends_in_words(machines, tmp_path, monkeypatch, lane):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    started = time.monotonic()
    with pytest.raises(StudyError, match="no machine had room for a run"):
        drive(tmp_path, runs=1, seconds=0.0, slots=1, cpus_per_worker=3.0, wait_seconds=6.0, lane=lane)
    assert time.monotonic() - started >= 6.0
    # Nothing was decided about the run: with a machine for it, the same command makes it.
    (trial,) = drive(tmp_path, runs=1, seconds=0.0, slots=1, cpus_per_worker=1.0)
    assert trial.state.name == "COMPLETE"


def test_all_machines_of_shared_storage_are_counted_and_nothing_is_left_behind(machines, tmp_path):
    (tmp_path / "store").mkdir()
    assert require_shared(tmp_path / "study", [tmp_path / "store"]) == 3
    assert list((tmp_path / "study").iterdir()) == []
    with pytest.raises(StorageError, match="nowhere does not exist"):
        require_shared(tmp_path / "study", [tmp_path / "nowhere"])


def test_a_search_uses_both_machines_and_survives_the_loss_of_one(machines, tmp_path):
    lost = []

    def lose_a_machine():
        noted = notes(tmp_path / "log")
        used = {node for _, _, node, _ in noted}
        if not lost and len(used) == 2 and len(noted) >= 6:
            victim = machines.workers[0]
            machines.remove_node(victim, allow_graceful=False)
            lost.append((victim.node_id, time.monotonic()))

    trials = drive(tmp_path, runs=8, seconds=1.0, slots=4, on_idle=lose_a_machine)
    assert lost, "no machine was lost: the search was over before"
    print(f"measured: ended {time.monotonic() - lost[0][1]:.1f} s after the loss")
    assert_all_trained_once(trials, notes(tmp_path / "log"), runs=8)


def test_a_raylet_that_is_killed_alone_costs_its_machine_and_no_epoch(machines, tmp_path):
    # The machine that the test before has lost is replaced.
    machines.workers[0] = machines.add_node(num_cpus=2, object_store_memory=80_000_000)
    killed = []

    def kill_raylet():
        noted = notes(tmp_path / "log")
        if not killed and len({node for _, _, node, _ in noted}) == 2 and len(noted) >= 6:
            (raylet,) = machines.workers[0].all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
            killed.append(time.monotonic())

    trials = drive(tmp_path, runs=8, seconds=1.0, slots=4, on_idle=kill_raylet)
    assert killed, "no raylet was killed: the search was over before"
    print(f"measured: ended {time.monotonic() - killed[0]:.1f} s after the raylet was killed")
    assert_all_trained_once(trials, notes(tmp_path / "log"), runs=8)


@long
def test_one_run_on_two_machines_goes_on_when_one_of_them_is_replaced(machines, recordings, tmp_path):
    """Two workers of two cores each fit on no single machine; the result is that of one process."""
    from training import cluster

    machines.remove_node(machines.workers.pop(0), allow_graceful=False)
    # One of these three is spare.
    machines.workers += [machines.add_node(num_cpus=2, object_store_memory=80_000_000) for _ in range(2)]
    spec = tiny_spec(epochs=5)
    spec = replace(
        spec,
        model=replace(spec.model, position_sigma=1e-12),
        loader=replace(spec.loader, batch_size=4),
    )
    alone = run(spec, recordings, tmp_path / "alone")
    lost, busy = [], []

    def on_epoch(report):
        if report.epoch == 2 and not lost:
            busy.extend(_machines_of_train_workers())
            victim = next(machine for machine in machines.workers if machine.node_id in busy)
            machines.workers.remove(victim)
            machines.remove_node(victim, allow_graceful=False)
            lost.append(time.monotonic())
        return True

    result = cluster.train_on_cluster(
        spec,
        [recordings[0].store],
        tmp_path / "both",
        workers=2,
        cpus_per_worker=2,
        on_epoch=on_epoch,
    )
    print(f"measured: ended {time.monotonic() - lost[0]:.1f} s after the loss")
    assert len(set(busy)) == 2
    assert result.outcome is Outcome.FINISHED, result.error
    assert result.epochs == 5
    assert result.score == pytest.approx(alone.score, abs=1e-3)


def _machines_of_train_workers():
    from ray._private.state import actors

    return [
        actor["Address"]["NodeID"]
        for actor in actors(actor_state_name="ALIVE").values()
        if "RayTrainWorker" in actor["ActorClassName"] + actor["Name"]
    ]


# The last one on these machines: it leaves none.
@long
def test_a_search_whose_machines_are_all_lost_waits_for_a_while_and_goes_on_when_there_is_one(
    machines, tmp_path
):
    lost = []

    def lose_all():
        if not lost and len(notes(tmp_path / "log")) >= 4:
            for machine in machines.workers:
                machines.remove_node(machine, allow_graceful=False)
            machines.workers.clear()
            lost.append(time.monotonic())

    with pytest.raises(StudyError, match="no machine had room for a run"):
        drive(tmp_path, runs=6, seconds=1.0, slots=4, wait_seconds=8.0, on_idle=lose_all)
    assert lost, "the machines were not lost: the search was over before"
    print(f"measured: gave up {time.monotonic() - lost[0]:.1f} s after the loss, told to wait 8 s")
    machines.workers.append(machines.add_node(num_cpus=2, object_store_memory=80_000_000))
    trials = drive(tmp_path, runs=6, seconds=1.0, slots=2)
    assert_all_trained_once(trials, notes(tmp_path / "log"), runs=6)


def test_a_machine_with_a_folder_of_its_own_is_named(tmp_path):
    probe = tmp_path / ".probe-1"
    assert "w1 does not see what the driver's machine wrote" in write_marker(str(probe), "w1")
    probe.mkdir()
    (probe / "driver").write_text(probe.name)
    assert "does not see the driver's lock" in write_marker(str(probe), "w1")
    with (probe / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert write_marker(str(probe), "w1") == ""
    assert read_markers(str(probe), "w1", ["driver", "w1"], []) == ""
    found = read_markers(str(probe), "w1", ["driver", "w1", "w2"], ["/no/such/store"])
    assert found == "on w1, the marker of w2 is missing, /no/such/store does not exist"
    (probe / "w1").write_text("something else")
    assert "another content" in read_markers(str(probe), "w2", ["w1"], [])


def test_storage_that_cannot_be_written_is_named(tmp_path):
    if os.geteuid() == 0:
        # Root writes everywhere but into a folder whose place is taken by a file.
        (tmp_path / "driver").write_text(tmp_path.name)
        (tmp_path / "w1.partial").mkdir()
    else:
        (tmp_path / "driver").write_text(tmp_path.name)
        tmp_path.chmod(0o500)
    assert "w1 cannot write or lock there" in write_marker(str(tmp_path), "w1")
