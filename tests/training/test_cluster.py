"""Ray Train: the same run on workers of a cluster, and what is left when one of them is killed."""

import os
import runpy
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import tiny_spec

from training.checkpoint import load_checkpoint
from training.material import Material
from training.optimization import OptimizerConfig
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
        model=replace(spec.model, position_sigma=1e-12),
        loader=replace(spec.loader, batch_size=4),
    )


def worker_pids():
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
    ]


def kept_encoder(result):
    return load_checkpoint(result.checkpoint)[0]["encoder"]


def test_two_workers_have_the_parameters_and_score_of_one_process_after_three_steps(
    cluster, recordings, tmp_path
):
    # Positions drift with noise that each process draws for itself: only what they share is trained here. And
    # AdamW divides rounding errors by themselves where a gradient is nearly zero, unless eps is larger.
    optimizer = OptimizerConfig(core_lr=0.003, readout_lr=1e-9, readout_weight_decay=0.0, eps=1e-5)
    spec = spec_without_noise(epochs=1, optimizer=optimizer)
    reports = []
    alone = run(spec, recordings, tmp_path / "alone", on_step=lambda report: reports.append(report.step))
    assert reports == [1, 2, 3]
    result = cluster.train_on_cluster(
        spec,
        [recordings[0].store],
        tmp_path / "both",
        workers=2,
        on_epoch=lambda report: reports.append(report.epoch) or True,
    )
    assert result.outcome is Outcome.FINISHED, result.error
    assert reports == [1, 2, 3, 1]
    assert result.spec == spec
    start = Material.prepare(recordings, spec, device=torch.device("cpu")).build_encoder().state_dict()
    one, two = kept_encoder(alone), kept_encoder(result)
    core = [name for name in one if name.startswith("core.")]
    assert max(float((one[name] - start[name]).abs().max()) for name in core) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    assert result.score == pytest.approx(alone.score, abs=1e-4)


def test_the_command_trains_on_ray_and_tracks_from_the_driver_alone(
    cluster, recordings, tmp_path, monkeypatch, capfd
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main = runpy.run_path(str(Path(__file__).parents[2] / "training" / "train.py"))["main"]
    command = ["vivit", "--recordings", str(recordings[0].store), "--runs", str(tmp_path), "--workers", "2"]
    values = {"clip_frames": 20, "batch_size": 4}
    settings = [f"loader.{name}={value}" for name, value in values.items()] + [
        "epochs=2",
        "split.num_folds=4",
    ]
    model = {"embedding_dim": 8, "spatial_depth": 1, "temporal_depth": 1, "spatial_patch_size": 4}
    model |= {"temporal_patch_size": 4, "num_heads": 2, "head_dim": 4, "ff_dim": 8, "max_frames": 80}
    settings += [f"model.{name}={value}" for name, value in model.items()]
    code = main([*command, *(part for setting in settings for part in ("--set", setting))])
    printed = capfd.readouterr().out
    assert code == 0, printed
    assert [line[:11] for line in printed.splitlines() if line.startswith("epoch")] == [
        "epoch   1/2",
        "epoch   2/2",
    ]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiments = [e for e in client.search_experiments() if e.name == "single-runs"]
    (tracked,) = client.search_runs([experiments[0].experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.tags["workers"] == "2"
    assert [p.step for p in client.get_metric_history(tracked.info.run_id, "loss")] == [1, 2]
    assert main(["vivit", "--resume", str(tmp_path / "vivit-42"), "--workers", "999", "--no-tracking"]) == 2
    assert "use fewer workers" in capfd.readouterr().out


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
    failed = cluster.train_on_cluster(
        spec_without_noise(optimizer=OptimizerConfig(core_lr=1e8)),
        [recordings[0].store],
        tmp_path / "failed",
        workers=1,
    )
    assert failed.outcome is Outcome.FAILED
    assert failed.score is None
    assert "try a lower optimizer.core_lr" in failed.error


def test_a_run_that_the_cluster_has_no_room_for_fails_after_its_wait_and_says_so(
    cluster, recordings, tmp_path, monkeypatch
):
    # A cluster that is named may grow; this one does not.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    started = time.monotonic()
    result = cluster.train_on_cluster(
        spec_without_noise(), [recordings[0].store], tmp_path / "alone", workers=5, wait_seconds=3
    )
    assert result.outcome is Outcome.FAILED
    assert "no room for 5 workers of 1 CPUs each within 3 s: add machines or use fewer" in result.error
    assert 3 <= time.monotonic() - started < 60


def test_nothing_to_wait_is_refused(cluster, recordings, tmp_path):
    with pytest.raises(ValueError, match=r"wait_seconds is 0, but must be above 0"):
        cluster.train_on_cluster(
            spec_without_noise(), [recordings[0].store], tmp_path, workers=1, wait_seconds=0
        )
