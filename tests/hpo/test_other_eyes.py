"""A study seen by others: Optuna's dashboard, and MLflow after drivers that died."""

import json
import threading
import urllib.request
from collections import Counter
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from hpo_search import FastObjective, open_study, search
from optuna.trial import TrialState

from hpo.driver import Driver, Limits
from hpo.mirror import Mirror
from hpo.study import storage_url
from training.tracking import prepare_store

NOISE = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
pytestmark = [*NOISE, pytest.mark.timeout(180)]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def test_the_study_opens_in_optunas_dashboard(tmp_path):
    from optuna_dashboard import wsgi

    trials = search(tmp_path, total=8)
    app = wsgi(storage_url(tmp_path / "study"))
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/api/studies"
        try:
            with urllib.request.urlopen(address) as answer:
                studies = json.load(answer)["study_summaries"]
            with urllib.request.urlopen(f"{address}/{studies[0]['study_id']}") as answer:
                shown = json.load(answer)["trials"]
        finally:
            server.shutdown()
            thread.join()
    assert [study["study_name"] for study in studies] == ["vivit"]
    states = {TrialState.COMPLETE: "Complete", TrialState.PRUNED: "Pruned"}
    assert [trial["state"] for trial in shown] == [states[trial.state] for trial in trials]
    curves = [
        {int(point["step"]): point["value"] for point in trial["intermediate_values"]} for trial in shown
    ]
    assert curves == [pytest.approx(trial.intermediate_values) for trial in trials]


def test_mlflow_holds_every_run_and_epoch_once_whatever_died(recordings, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    prepare_store(uri, experiment="vivit")

    class Dying(FastObjective):
        def __call__(self, spec, folder, on_epoch):
            def dies(report):
                if report.epoch == 2:
                    raise KeyboardInterrupt
                return on_epoch(report)

            return super().__call__(spec, folder, dies if folder.name == "0001" else on_epoch)

    def drive(objective):
        study = open_study(tmp_path, pruner="none")
        mirror = Mirror(study, recordings, uri=uri, uid=study.uid, tags={"scale": "demo"})
        driver = Driver(study, Limits(runs=5), observers=[mirror])
        try:
            driver.run_here(objective)
            return study.trials()
        finally:
            assert mirror.close([tmp_path / "log"], finished=True, wait_seconds=60)
            study.close()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            drive(Dying(log=tmp_path / "log"))
    trials = drive(FastObjective(log=tmp_path / "log"))
    client = MlflowClient(tracking_uri=uri)
    shown = client.search_runs([client.get_experiment_by_name("vivit").experiment_id])
    parents = [run for run in shown if run.data.tags["kind"] == "study"]
    children = {int(run.data.tags["run"]): run for run in shown if run.data.tags["kind"] == "run"}
    assert len(parents) == 1
    assert len(shown) == 1 + len(trials) == 1 + len(children)
    assert parents[0].info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(parents[0].info.run_id)] == ["log"]
    for trial in trials:
        child = children[trial.number]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.data.tags["outcome"] == trial.user_attrs["outcome"]
        history = client.get_metric_history(child.info.run_id, "score")
        assert Counter(metric.step for metric in history) == Counter(trial.intermediate_values.keys())
        assert float(child.data.params["optimizer.core_lr"]) == trial.params["optimizer.core_lr"]
