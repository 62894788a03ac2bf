"""``training/train.py`` as it is typed: what it prints, tracks, keeps and answers."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_checkpoint
from training.console import RunDisplay
from training.tracking import prepare_store

SCRIPT = Path(__file__).parents[2] / "training" / "train.py"
EPOCHS = 3
SMALL = {
    "model.channels": "4,6",
    "model.input_spatial_kernel": "5",
    "model.hidden_spatial_kernel": "3",
    "model.input_temporal_kernel": "5",
    "model.hidden_temporal_kernel": "3",
    "loader.clip_frames": "20",
    "loader.batch_size": "4",
    "split.num_folds": "4",
    "epochs": str(EPOCHS),
}


def settings(**changes):
    return [part for name, value in (SMALL | changes).items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """One MLflow store for all runs of this file."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    prepare_store(uri, experiment="single-runs")
    return uri


@pytest.fixture
def train(recordings, tmp_path, tracking, monkeypatch, capsys):
    """Run the script in this process; answer its exit code and what it printed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    main = runpy.run_path(str(SCRIPT))["main"]

    def call(*arguments, **changes):
        command = ["factorized", "--recordings", str(recordings[0].store), "--runs", str(tmp_path)]
        code = main([*command, *settings(**changes), *arguments])
        return code, capsys.readouterr().out

    return call


def stored_run(uri, name):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("single-runs")
    found = client.search_runs([experiment.experiment_id], f"tags.`striate.run` LIKE '{name}-%'")
    assert len(found) == 1
    return client, found[0]


def test_help_imports_nothing_heavy():
    check = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "print(sorted({'torch', 'numpy', 'ray', 'mlflow', 'rich', 'training'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "exit codes: 0 finished" in done.stdout


def test_a_run_prints_one_plain_line_per_epoch_and_is_tracked_whole(train, tmp_path, tracking):
    code, printed = train("--name", "plain", "--select-on", "oracle")
    assert code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    lines = [line for line in printed.splitlines() if line.startswith("epoch")]
    assert len(lines) == EPOCHS
    assert all(re.search(r"loss \d.*correlation -?\d.*clips/s.*min left", line) for line in lines)
    result = json.loads((tmp_path / "plain" / "result.json").read_text())
    assert f"{result['score']:.4f}" in printed
    client, tracked = stored_run(tracking, "plain")
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.channels"] == "(4, 6)"
    assert tracked.data.params["loader.batch_size"] == "4"
    assert tracked.data.tags["select_on"] == "oracle"
    scores = {point.step: point.value for point in client.get_metric_history(tracked.info.run_id, "score")}
    assert sorted(scores) == list(range(1, EPOCHS + 1))
    assert max(scores.values()) == pytest.approx(result["score"])
    assert {f"score/{session}" for session in result["score_by_session"]} <= set(tracked.data.metrics)
    artifacts = {
        file.path
        for folder in ("pictures", "checkpoint")
        for file in client.list_artifacts(tracked.info.run_id, folder)
    }
    assert artifacts == {
        "pictures/curves.png",
        "pictures/traces.png",
        "checkpoint/checkpoint.json",
        "checkpoint/state.pt",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "optimizer.core_rl=1"], "did you mean optimizer.core_lr?"),
        (["--set", "epochs"], "must be NAME=VALUE"),
        (["--set", "epochs=many"], "epochs"),
        (["--recordings", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_words_are_answered_with_the_nearest_known_and_code_2(train, tmp_path, arguments, words):
    code, printed = train("--name", "wrong", *arguments)
    assert code == 2
    assert words in printed
    assert not (tmp_path / "wrong").exists()


def test_an_unknown_model_is_answered_with_the_nearest_known(recordings, tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["vivid", "--recordings", str(recordings[0].store), "--runs", str(tmp_path)]) == 2
    assert "did you mean vivit?" in capsys.readouterr().out


def test_a_failed_run_says_why_in_mlflow_and_ends_with_code_1(train, tracking):
    code, printed = train("--name", "exploding", "--no-tracking", **{"optimizer.core_lr": "1e9"})
    assert code == 1
    assert "try a lower optimizer.core_lr" in re.sub(r"[\s\u2502]+", " ", printed)
    code, _ = train("--name", "exploding-tracked", **{"optimizer.core_lr": "1e9"})
    assert code == 1
    _, tracked = stored_run(tracking, "exploding-tracked")
    assert tracked.info.status == "FAILED"
    assert "optimizer.core_lr" in tracked.data.tags["error"]
    assert "score" not in tracked.data.metrics


def test_an_interrupted_run_goes_on_with_resume_and_is_one_run_in_mlflow(
    train, tmp_path, tracking, monkeypatch
):
    assert train("--name", "whole", "--no-tracking")[0] == 0
    original = RunDisplay.epoch

    def interrupt(self, report):
        original(self, report)
        if report.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDisplay, "epoch", interrupt)
    assert train("--name", "stopped")[0] == 130
    _, tracked = stored_run(tracking, "stopped")
    assert tracked.info.status == "KILLED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["--resume", str(tmp_path / "stopped"), "--runs", str(tmp_path)]) == 0
    whole, resumed = (
        load_checkpoint(Path(json.loads((tmp_path / name / "result.json").read_text())["checkpoint"]))[0]
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole["encoder"][name], resumed["encoder"][name]) for name in whole["encoder"])
    client, tracked = stored_run(tracking, "stopped")
    assert tracked.info.status == "FINISHED"
    # The epoch that was interrupted while it was shown had not been reported; the others are there once.
    steps = [point.step for point in client.get_metric_history(tracked.info.run_id, "loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == EPOCHS


def test_another_run_of_the_same_name_is_refused(train):
    assert train("--name", "one", "--no-tracking")[0] == 0
    code, printed = train("--name", "one", "--no-tracking", "--seed", "3")
    assert code == 2
    assert "holds another run: choose another --name" in printed


def test_a_dry_run_counts_parameters_and_steps_and_trains_nothing(train, recordings, tmp_path):
    code, printed = train("--name", "dry", "--dry-run")
    assert code == 0
    assert not (tmp_path / "dry").exists()
    assert train("--name", "wet", "--no-tracking")[0] == 0
    kept = load_checkpoint(tmp_path / "wet" / "checkpoints" / f"encoder-{EPOCHS:04d}")[0]
    parameters = {name: value for name, value in kept["encoder"].items() if name.endswith(("weight", "bias"))}
    counted = int(re.search(r"parameters\s+\S\s+([\d,]+)", printed)[1].replace(",", ""))
    assert counted >= sum(value.numel() for value in parameters.values()) > 0
    # Nine of twelve training movies, four to a batch.
    assert re.search(r"steps\s+\S\s+3 an epoch, at most 3 epochs", printed)
    assert printed.count("9 training trials, 3 held out") == len(recordings)


@pytest.mark.timeout(240)
def test_torchrun_starts_two_processes_that_train_one_run(recordings, tmp_path, tracking):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, str(SCRIPT), "factorized", "--recordings", str(recordings[0].store)]
    command += ["--runs", str(tmp_path), "--name", "two", *settings()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": tracking}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1/3") == 1
    assert "Warning" not in done.stderr
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["outcome"] == "finished"
    client, tracked = stored_run(tracking, "two")
    assert len(client.get_metric_history(tracked.info.run_id, "loss")) == EPOCHS
