"""Ray Train: the same run on workers of a cluster, and what is left when one of them is killed."""

import os
import signal
from dataclasses import replace

import pytest
from training_runs import tiny_spec

from training.results import Outcome
from training.run import run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    import ray

    from training import cluster

    ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    yield cluster
    ray.shutdown()


def spec_without_noise(**changes):
    spec = tiny_spec(**changes)
    return replace(
        spec,
        model=replace(spec.model, position_sigma=1e-6),
        loader=replace(spec.loader, batch_size=4),
    )


def worker_pids():
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
    ]


def test_two_workers_give_the_score_of_one_process(cluster, recordings, tmp_path):
    spec = spec_without_noise(epochs=2)
    alone = run(spec, recordings, tmp_path / "alone")
    reports = []
    result = cluster.train_on_cluster(
        spec,
        [recordings[0].store],
        tmp_path / "both",
        workers=2,
        on_epoch=lambda report: reports.append(report.epoch) or True,
    )
    assert result.outcome is Outcome.FINISHED, result.error
    assert reports == [1, 2]
    assert result.score == pytest.approx(alone.score, abs=1e-3)
    assert result.spec == spec


def test_a_killed_worker_costs_at_most_its_epoch(cluster, recordings, tmp_path):
    spec = spec_without_noise(epochs=6)
    killed, epochs = [], []

    def on_epoch(report):
        epochs.append(report.epoch)
        if report.epoch == 2 and not killed:
            killed.extend(worker_pids()[:1])
            os.kill(killed[0], signal.SIGKILL)
        return True

    result = cluster.train_on_cluster(
        spec, [recordings[0].store], tmp_path / "run", workers=2, on_epoch=on_epoch
    )
    assert result.outcome is Outcome.FINISHED, result.error
    assert len(killed) == 1
    assert sorted(set(epochs)) == [1, 2, 3, 4, 5, 6]
    assert len(epochs) <= 7
    uninterrupted = cluster.train_on_cluster(spec, [recordings[0].store], tmp_path / "whole", workers=2)
    assert result.score == pytest.approx(uninterrupted.score, abs=1e-12)


def test_the_driver_stops_a_run_and_a_failed_one_says_why(cluster, recordings, tmp_path):
    stopped = cluster.train_on_cluster(
        spec_without_noise(epochs=5),
        [recordings[0].store],
        tmp_path / "stopped",
        workers=1,
        on_epoch=lambda report: report.epoch < 2,
    )
    assert stopped.outcome is Outcome.PRUNED
    assert stopped.epochs == 2
    with pytest.raises(ValueError, match="use fewer workers"):
        cluster.train_on_cluster(spec_without_noise(), [recordings[0].store], tmp_path / "many", workers=999)
