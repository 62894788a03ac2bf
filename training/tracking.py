"""MLflow, from one process and one background thread: a run never waits for a tracking server.

Every event goes to the run's spool first (``training/spool.py``); the thread sends what waits there, in order
and in batches. A server that is slow, down or back again changes when events arrive, not whether.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from training.spool import EVENTS_FILE, Spool
from training.tracking_view import NAME_TAG, NOTE_TAG, VIEW_TAG, note, view_state

logger = logging.getLogger(__name__)

RUN_TAG = "striate.run"
PARENT_TAG = "striate.parent"
"""Our name of the run that a run is shown under; that one must have been sent before."""

_BATCH_EVENTS = 64
_MAX_METRICS = 1000
_MAX_PARAMETERS = 100
# By its own defaults one MLflow call blocks for minutes (7 retries of 120 s); here it answers or fails soon,
# and the thread tries again. MLflow tells of every table it creates.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Two lines for every run that ends on a server, in the middle of our output.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def default_tracking_uri(root: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or a SQLite file under ``root``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def prepare_store(uri: str, *, experiment: str) -> None:
    """Create the store's tables and the experiment once, before any worker starts.

    Two processes that create a SQLite store at the same time break its schema.
    """
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    _MlflowSender(uri, experiment).experiment_id()


class Recorder:
    """Write the events of one run into its spool; somebody else sends them.

    Args:
        folder: the run's folder; holds the spool.
        uri: MLflow tracking URI.
        experiment: name of the MLflow experiment.
        run_id: our name of the run; the MLflow run is found again by it.
        tags: further tags of the MLflow run (study, model, fold, seed, commit, data).
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        run_id: str,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.spool = Spool(folder)
        self._write("run", uri=uri, experiment=experiment, run_id=run_id, tags=dict(tags or {}))

    def parameters(self, values: Mapping[str, object]) -> None:
        """Record hyperparameters under their dotted names; the first value of a name stays."""
        self._write("parameters", values={name: str(value) for name, value in values.items()})

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers of one step (an epoch)."""
        self._write("metrics", values=dict(values), step=step)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._write("tags", values=dict(values))

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """Record a file or folder; it must stay where it is until it has been sent."""
        self._write("artifact", path=str(path.resolve()), folder=folder)

    def end(self, status: str) -> None:
        """End the run with MLflow's word: FINISHED, FAILED or KILLED."""
        self._write("end", status=status)

    def _write(self, kind: str, **fields: Any) -> None:
        try:
            self.spool.append({"kind": kind, "time": int(time.time() * 1000), **fields})
        except OSError as error:
            # A full disk must not end a run because its diary could not be written.
            logger.warning("tracking: an event of kind %s could not be written: %s", kind, error)


class Tracker(Recorder):
    """Record one run, and send it from a thread of its own.

    Args:
        folder: the run's folder; holds the spool.
        uri: MLflow tracking URI.
        experiment: name of the MLflow experiment.
        run_id: our name of the run; the MLflow run is found again by it.
        tags: further tags of the MLflow run (study, model, fold, seed, commit, data).
        retry_seconds: pause after a failed attempt to send.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        run_id: str,
        tags: Mapping[str, str] | None = None,
        retry_seconds: float = 5.0,
    ) -> None:
        self._retry_seconds = retry_seconds
        self._wake = threading.Event()
        self._closing = threading.Event()
        super().__init__(folder, uri=uri, experiment=experiment, run_id=run_id, tags=tags)
        self._thread = threading.Thread(target=self._send_forever, name="tracking", daemon=True)
        self._thread.start()

    def finish(self, status: str, *, wait_seconds: float = 15.0) -> bool:
        """End the run and wait a bounded time for the server.

        Args:
            status: MLflow's word: FINISHED, FAILED or KILLED.
            wait_seconds: how long to wait for what has not arrived yet.

        Returns:
            Whether everything has arrived; what has not stays in the spool for ``sync``.
        """
        self.end(status)
        deadline = time.monotonic() + wait_seconds
        while not self.spool.is_empty and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.02)
        self._closing.set()
        self._wake.set()
        if not self.spool.is_empty:
            logger.warning("tracking: not everything was sent; it waits in %s", self.spool.folder)
        return self.spool.is_empty

    def _write(self, kind: str, **fields: Any) -> None:
        super()._write(kind, **fields)
        self._wake.set()

    def _send_forever(self) -> None:
        warned = False
        senders: dict[tuple[str, str], _MlflowSender] = {}
        while not self._closing.is_set():
            self._wake.wait(timeout=self._retry_seconds)
            self._wake.clear()
            try:
                while not self._closing.is_set() and send_waiting(self.spool, senders):
                    pass
                warned = False
            except Exception as error:
                if not warned:
                    logger.warning("tracking: the server does not answer, will try again: %s", error)
                warned = True
                self._closing.wait(self._retry_seconds)
                self._wake.set()


def send_waiting(spool: Spool, senders: dict[tuple[str, str], "_MlflowSender"] | None = None) -> int:
    """Send one batch of waiting events.

    Args:
        spool: the run's events.
        senders: connections to reuse.

    Returns:
        Events sent; 0 when nothing waited.
    """
    waiting = list(spool.unsent(limit=_BATCH_EVENTS))
    if not waiting:
        return 0
    first = spool.first()
    senders = {} if senders is None else senders
    key = (first["uri"], first["experiment"])
    sender = senders.setdefault(key, _MlflowSender(*key))
    sender.send(first, [event for event, _ in waiting])
    spool.mark_sent(waiting[-1][1])
    return len(waiting)


def sync(root: Path) -> tuple[int, int]:
    """Send what the runs below ``root`` could not send.

    Returns:
        Events sent, runs that still could not be reached.
    """
    sent = failed = 0
    for events in sorted(root.rglob(EVENTS_FILE)):
        spool = Spool(events.parent)
        try:
            while count := send_waiting(spool):
                sent += count
        except Exception as error:
            logger.warning("tracking: %s could not be sent: %s", events.parent, error)
            failed += 1
    return sent, failed


class _MlflowSender:
    """Turns events into as few MLflow requests as possible."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self._experiment = uri, experiment
        self._mlflow_runs: dict[str, str] = {}
        self._client: Any = None

    def client(self) -> Any:
        if self._client is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            # Two seconds of import, paid in the background thread.
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client

    def experiment_id(self) -> str:
        experiment = self.client().get_experiment_by_name(self._experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None
        if self._uri.startswith("sqlite:///"):
            # MLflow would put the files into the folder that a command happens to run in.
            store = Path(self._uri.removeprefix("sqlite:///"))
            location = (store.resolve().parent / "artifacts" / self._experiment).as_uri()
        return str(self.client().create_experiment(self._experiment, artifact_location=location))

    def mlflow_run(self, first: Mapping[str, Any]) -> str:
        """Find the run by its tag, or create it: sending twice makes one run."""
        run_id = first["run_id"]
        if run_id not in self._mlflow_runs:
            experiment_id = self.experiment_id()
            found = self.client().search_runs(
                [experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1
            )
            if found:
                self._mlflow_runs[run_id] = found[0].info.run_id
            else:
                tags = {**first["tags"], RUN_TAG: run_id}
                name = tags.pop(NAME_TAG, run_id)
                if PARENT_TAG in tags:
                    tags["mlflow.parentRunId"] = self._parent(experiment_id, tags[PARENT_TAG])
                created = self.client().create_run(
                    experiment_id, start_time=first["time"], tags=tags, run_name=name
                )
                self._mlflow_runs[run_id] = created.info.run_id
                self._show(experiment_id, kind=tags.get("kind", ""))
        return self._mlflow_runs[run_id]

    def _show(self, experiment_id: str, *, kind: str) -> None:
        """Let the experiment's page show the columns that matter."""
        if VIEW_TAG not in self.client().get_experiment(experiment_id).tags:
            self.client().set_experiment_tag(experiment_id, NOTE_TAG, note(experiment_id))
            self.client().set_experiment_tag(experiment_id, VIEW_TAG, view_state(kind))

    def _parent(self, experiment_id: str, run_id: str) -> str:
        if run_id not in self._mlflow_runs:
            found = self.client().search_runs(
                [experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1
            )
            if not found:
                raise LookupError(f"the parent run {run_id} has not been sent yet")
            self._mlflow_runs[run_id] = found[0].info.run_id
        return self._mlflow_runs[run_id]

    def send(self, first: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> None:
        """Send events in order; neighbors that fit into one request share it."""
        mlflow_run = self.mlflow_run(first)
        metrics: list[Any] = []
        params: list[Any] = []
        tags: list[Any] = []
        for event in events:
            self._collect(event, metrics, params, tags)
            if event["kind"] in ("artifact", "end"):
                self._log(mlflow_run, metrics, params, tags)
                self._send_one(mlflow_run, event)
        self._log(mlflow_run, metrics, params, tags)

    @staticmethod
    def _collect(event: Mapping[str, Any], metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        values = event.get("values", {})
        if event["kind"] == "metrics":
            # The event's own time makes a metric sent twice the same row.
            metrics += [Metric(name, value, event["time"], event["step"]) for name, value in values.items()]
        elif event["kind"] == "parameters":
            params += [Param(name, value) for name, value in values.items()]
        elif event["kind"] == "tags":
            tags += [RunTag(name, value) for name, value in values.items()]

    def _log(self, mlflow_run: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        for some_metrics, some_params in _chunks(metrics, params):
            self.client().log_batch(mlflow_run, metrics=some_metrics, params=some_params, tags=tags)
            tags.clear()
        if tags:
            self.client().log_batch(mlflow_run, tags=tags)
        metrics.clear()
        params.clear()
        tags.clear()

    def _send_one(self, mlflow_run: str, event: Mapping[str, Any]) -> None:
        if event["kind"] == "end":
            self.client().set_terminated(mlflow_run, status=event["status"], end_time=event["time"])
            return
        path = Path(event["path"])
        if not path.exists():
            logger.warning("tracking: artifact %s is gone and was not sent", path)
        elif path.is_dir():
            self.client().log_artifacts(mlflow_run, str(path), event["folder"] or path.name)
        else:
            self.client().log_artifact(mlflow_run, str(path), event["folder"] or None)


def _chunks(metrics: list[Any], params: list[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    num_requests = max(-(-len(metrics) // _MAX_METRICS), -(-len(params) // _MAX_PARAMETERS))
    for index in range(num_requests):
        yield (
            metrics[index * _MAX_METRICS : (index + 1) * _MAX_METRICS],
            params[index * _MAX_PARAMETERS : (index + 1) * _MAX_PARAMETERS],
        )
