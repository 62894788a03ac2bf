"""The whole command, as a person runs, interrupts and kills it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hpo_search import open_study
from optuna.trial import TrialState
from rich.console import Console

from hpo.command import _archive
from hpo.identity import StudyError
from hpo.study import read_trials

SCRIPT = Path(__file__).parents[2] / "hpo" / "search.py"
RUNS, EPOCHS = 3, 9


class Search:
    """The command in a process of its own."""

    def __init__(self, recordings, root, *more):
        self.root = root
        self.arguments = [
            *("factorized", "--recordings", str(recordings[0].store), "--root", str(root), "--name", "it"),
            *("--runs", str(RUNS), "--max-epochs", str(EPOCHS), "--max-concurrent", "2"),
            *more,
        ]

    def start(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def checkpoints(self):
        return set(self.root.glob("studies/it/runs/*/checkpoints/state-*"))

    def wait_for_an_epoch(self, process):
        before = self.checkpoints()
        while process.poll() is None and not self.checkpoints() - before:
            time.sleep(0.02)
        assert process.poll() is None, process.stdout.read()


def kill(process):
    """Kill a driver, and wait until its runs are gone: they may finish an epoch meanwhile."""
    runs = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "ray::ImplicitFunc" in " ".join(child.cmdline()):
                runs.append(child)
    assert runs
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(runs, timeout=120)[1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_search_interrupted_in_every_way_ends_as_if_it_had_not_been(recordings, tmp_path):
    search = Search(recordings, tmp_path)

    process = search.start()
    search.wait_for_an_epoch(process)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "stopping when the running epochs end" in output
    assert "The same command goes on" in output
    left = read_trials(tmp_path / "studies" / "it")
    assert TrialState.RUNNING in {trial.state for trial in left}

    process = search.start()
    search.wait_for_an_epoch(process)
    kill(process)

    process = search.start()
    search.wait_for_an_epoch(process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130, output

    process = search.start()
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert re.search(r"run +0 +goes on", output)
    trials = read_trials(tmp_path / "studies" / "it")
    feasible = [trial for trial in trials if trial.user_attrs["outcome"] != "infeasible"]
    assert len(feasible) == RUNS
    for trial in feasible:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
    for part in ("best: run", "published values: run 0", "noise ceiling", "next:", "report.html"):
        assert part in output
    require_mirrored(tmp_path, trials)

    again = subprocess.run(
        [sys.executable, str(SCRIPT), "reproduce", "it", str(feasible[-1].number), "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the same" in again.stdout


def require_mirrored(root, trials):
    """MLflow holds every run once, and every epoch of it once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("factorized")
    shown = client.search_runs([experiment.experiment_id])
    parents = [run for run in shown if run.data.tags["kind"] == "study"]
    children = {int(run.data.tags["run"]): run for run in shown if run.data.tags["kind"] == "run"}
    assert len(parents) == 1
    assert len(shown) == 1 + len(children)
    assert set(children) == {trial.number for trial in trials}
    for trial in trials:
        child = children[trial.number]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.data.tags["outcome"] == trial.user_attrs["outcome"]
        history = client.get_metric_history(child.info.run_id, "score")
        assert Counter(metric.step for metric in history) == Counter(trial.intermediate_values.keys())
        for metric in history:
            assert metric.value == pytest.approx(trial.intermediate_values[metric.step])
        for name, value in trial.params.items():
            shown_value = child.data.params[name]
            assert shown_value.strip("()").replace(" ", "") == str(value).strip("()") or float(
                shown_value
            ) == pytest.approx(value)
    names = {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert {"runs.csv", "report.html"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vivit", "--rungs", "3"], "--rungs is not an option, see --help; did you mean --runs?"),
        (["reproduce", "it", "0", "--rout", "x"], "did you mean --root?"),
        (["vivid"], "did you mean vivit?"),
        (["vivit", "--set", "model.num_head=2"], "did you mean model.num_heads?"),
        (["vivit", "--lane", "trian"], "did you mean train?"),
        (["vivit", "--lane", "actors", "--workers-per-run", "2"], "an actor is one process"),
        (["vivit", "--runs", "0"], "--runs is 0, but must be at least 1"),
        (["vivit", "--max-epochs", "0"], "--max-epochs is 0, but must be at least 1"),
        (["vivit", "--confirm", "2", "--confirm-seeds", "0"], "--confirm-seeds is 0, but must be at least 1"),
        (["vivit", "--run-timeout", "0"], "--run-timeout is 0, but must be above 0"),
        (["report", "nothing"], "study is 'nothing'"),
    ],
)
def test_wrong_use_is_refused_with_the_way_out(tmp_path, capsys, arguments, message):
    import importlib.util

    spec = importlib.util.spec_from_file_location("search_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        code = script.main([*arguments, "--root", str(tmp_path)])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    assert code == 2
    assert message in " ".join((shown.out + shown.err).split())


def test_fresh_archives_the_old_study(tmp_path, capsys):
    folder = tmp_path / "studies" / "it"
    folder.mkdir(parents=True)
    (folder / "study.db").write_text("kept")
    _archive(folder, Console(), what="the old study")
    assert not folder.exists()
    archived = list((tmp_path / "studies").iterdir())
    assert len(archived) == 1
    assert (archived[0] / "study.db").read_text() == "kept"
    assert "the old study is now" in capsys.readouterr().out


def test_a_study_that_is_being_driven_is_not_archived(tmp_path):
    study = open_study(tmp_path)
    with pytest.raises(StudyError, match="driven by another process"):
        _archive(study.folder, Console(), what="the old study")
    assert study.folder.exists()
    study.close()
