import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from training.spool import Spool
from training.tracking import Tracker, prepare_store, sync

EXPERIMENT = "test"


def sqlite_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def stored_run(uri: str, run_id: str):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.`striate.run` = '{run_id}'")
    assert len(found) == 1
    return client, found[0]


@pytest.fixture
def uri(tmp_path):
    address = sqlite_uri(tmp_path / "store")
    prepare_store(address, experiment=EXPERIMENT)
    return address


def test_what_is_recorded_arrives_in_mlflow(tmp_path, uri):
    tracker = Tracker(tmp_path / "run", uri=uri, experiment=EXPERIMENT, run_id="r1", tags={"model": "gru"})
    tracker.parameters({"model.spatial_depth": 3, "optimizer.core_lr": 0.0048})
    for epoch in (1, 2, 3):
        tracker.metrics({"loss": 1.0 / epoch, "score": 0.1 * epoch}, step=epoch)
    picture = tmp_path / "curve.txt"
    picture.write_text("curve")
    tracker.artifact(picture, folder="pictures")
    assert tracker.finish("FINISHED", wait_seconds=30)

    client, run = stored_run(uri, "r1")
    assert run.data.params == {"model.spatial_depth": "3", "optimizer.core_lr": "0.0048"}
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5, 1 / 3]
    assert run.data.tags["model"] == "gru"
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == [
        "pictures/curve.txt"
    ]


def test_events_sent_twice_are_stored_once(tmp_path, uri):
    tracker = Tracker(tmp_path / "run", uri=uri, experiment=EXPERIMENT, run_id="r2")
    tracker.metrics({"loss": 0.5}, step=1)
    assert tracker.finish("FINISHED", wait_seconds=30)
    (tmp_path / "run" / "tracking.sent").write_text("0")
    assert sync(tmp_path / "run") == (3, 0)
    client, run = stored_run(uri, "r2")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1


def test_a_line_cut_short_by_a_crash_costs_only_itself(tmp_path):
    spool = Spool(tmp_path)
    spool.append({"kind": "run"})
    with (tmp_path / "tracking.jsonl").open("ab") as file:
        file.write(b'{"kind": "metr')
    spool.append({"kind": "end"})
    assert [event["kind"] for event, _ in spool.unsent(limit=10)] == ["run", "end"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            time.sleep(0.1)
    stop_server(server)
    raise RuntimeError((folder / "server.log").read_text())


def stop_server(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.timeout(180)
def test_a_server_killed_and_restarted_loses_nothing(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    prepare_store(sqlite_uri(folder), experiment=EXPERIMENT)
    port = free_port()
    server = start_server(folder, port)
    try:
        tracker = Tracker(
            tmp_path / "run",
            uri=f"http://127.0.0.1:{port}",
            experiment=EXPERIMENT,
            run_id="r3",
            retry_seconds=0.5,
        )
        slowest = 0.0
        for epoch in range(1, 31):
            if epoch == 10:
                stop_server(server)
            if epoch == 20:
                server = start_server(folder, port)
            started = time.monotonic()
            tracker.metrics({"loss": 1.0 / epoch}, step=epoch)
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.05)
        assert slowest < 1.0
        assert tracker.finish("FINISHED", wait_seconds=60)
    finally:
        stop_server(server)
    client, run = stored_run(sqlite_uri(folder), "r3")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, 31))


def test_a_server_that_never_answers_leaves_everything_for_later(tmp_path, uri):
    dead = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker(tmp_path / "run", uri=dead, experiment=EXPERIMENT, run_id="r4", retry_seconds=0.2)
    tracker.metrics({"loss": 0.25}, step=1)
    assert not tracker.finish("FINISHED", wait_seconds=0.5)
    events = tmp_path / "run" / "tracking.jsonl"
    events.write_text(events.read_text().replace(dead, uri))
    assert sync(tmp_path) == (3, 0)
    client, run = stored_run(uri, "r4")
    assert client.get_metric_history(run.info.run_id, "loss")[0].value == 0.25


def test_an_experiment_shows_scores_and_outcomes_first_and_runs_by_short_names(tmp_path, uri):
    from mlflow import MlflowClient

    tags = {"kind": "study", "mlflow.runName": "vivit-demo"}
    parent = Tracker(tmp_path / "s", uri=uri, experiment=EXPERIMENT, run_id="s-1", tags=tags)
    assert parent.finish("FINISHED")
    tags = {"kind": "run", "striate.parent": "s-1"}
    child = Tracker(tmp_path / "r", uri=uri, experiment=EXPERIMENT, run_id="s-1-0", tags=tags)
    assert child.finish("FINISHED")
    assert stored_run(uri, "s-1")[1].info.run_name == "vivit-demo"
    assert stored_run(uri, "s-1-0")[1].info.run_name == "s-1-0"
    experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT)
    view = json.loads(experiment.tags["mlflow.sharedViewState.striate"])
    assert view["selectedColumns"][:2] == ["tags.`outcome`", "metrics.`best_score`"]
    link = f"(#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=striate)"
    assert link in experiment.tags["mlflow.note.content"]
