"""Searches over several of Ray's simulated machines: two that train, one that is lost, none that is left."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from hpo_search import EPOCHS, open_study
from noting_runs import Noting

from hpo.cluster import ClusterConfig, run_on_ray
from hpo.driver import Driver, Limits
from hpo.identity import StudyError
from training.nodes import StorageError, read_markers, require_shared, write_marker

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def machines():
    """A head without cores and two machines of two cores each."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    for name, value in {"period_ms": 1000, "failure_threshold": 4, "timeout_ms": 2000}.items():
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


def test_a_search_that_no_machine_has_room_for_ends_in_words(machines, tmp_path):
    started = time.monotonic()
    with pytest.raises(StudyError, match="no machine had room for a run"):
        drive(tmp_path, runs=1, seconds=0.0, slots=1, cpus_per_worker=3.0, wait_seconds=6.0)
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


# The last one that needs all machines: it loses one of them.
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
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    # Every epoch was trained once: a lost run went on from its folder.
    trained = [(folder, epoch) for folder, epoch, _, _ in notes(tmp_path / "log")]
    assert sorted(trained) == sorted(set(trained))
    assert len(trained) == 8 * EPOCHS


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
