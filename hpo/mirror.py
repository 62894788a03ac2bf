"""MLflow shows a study: a parent run for it, a child for each of its runs, written by the driver alone.

The mirror follows the study and never the other way round. Events go into the spool of each run's folder
first and one thread sends them, so a server that is slow or down costs the search nothing.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.recording import Recording
from hpo.study import Asked, Study, run_folder
from training.names import flatten
from training.reporter import STATUS, epoch_metrics, run_tags
from training.results import EpochReport, Outcome, RunResult
from training.spool import EVENTS_FILE, Spool
from training.tracking import PARENT_TAG, Recorder, send_waiting
from training.tracking_view import NAME_TAG

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


class Mirror:
    """Mirrors a study. It is an observer of the driver.

    Args:
        study: what is mirrored.
        recordings: what the runs are trained on.
        uri: MLflow tracking URI.
        uid: tells this study from an earlier one of the same name.
        tags: of the parent run.
    """

    def __init__(
        self,
        study: Study,
        recordings: Sequence[Recording],
        *,
        uri: str,
        uid: str,
        tags: Mapping[str, str],
    ) -> None:
        self._study, self._recordings, self._uri = study, recordings, uri
        self._parent = f"{study.folder.name}-{uid}"
        self._recorders: dict[int, Recorder] = {}
        self._steps: dict[int, set[int]] = {}
        self._closing = threading.Event()
        self._spools: dict[Path, Spool] = {}
        self._study_recorder = self._open(
            study.folder,
            self._parent,
            run_tags(study.space.base, recordings) | self._study_tags() | dict(tags),
        )
        self._study_recorder.tags({"outcome": "running"})
        for events in sorted(study.folder.glob(f"runs/*/{EVENTS_FILE}")):
            self._spools[events.parent] = Spool(events.parent)
        self._thread = threading.Thread(target=self._send_forever, name="mirror", daemon=True)
        self._thread.start()

    def started(self, asked: Asked) -> None:
        """Begin a child run, or go on with it."""
        folder = run_folder(self._study.folder, asked.number)
        self._steps[asked.number] = recorded_steps(folder)
        spec = asked.spec or self._study.space.base
        tags = run_tags(spec, self._recordings) | {
            PARENT_TAG: self._parent,
            NAME_TAG: f"run {asked.number}",
            "study": self._study.folder.name,
            "run": str(asked.number),
            "kind": "run",
        }
        recorder = self._open(folder, f"{self._parent}-{folder.name}", tags)
        self._recorders[asked.number] = recorder
        if not asked.resumed:
            recorder.parameters(flatten(spec) if asked.spec is not None else asked.values)

    def epoch(self, number: int, report: EpochReport) -> None:
        """Record an epoch, unless it is recorded already."""
        if report.epoch not in self._steps[number]:
            self._steps[number].add(report.epoch)
            self._recorders[number].metrics(epoch_metrics(report), step=report.epoch)

    def ended(self, number: int, result: RunResult) -> None:
        """Record how a run ended."""
        recorder = self._recorders.pop(number, None)
        if recorder is None:
            return
        tags = {"outcome": str(result.outcome)} | ({"reason": result.error} if result.error else {})
        if result.score is not None:
            tags["final_score"] = f"{result.score:.6f}"
        recorder.tags(tags)
        traces = run_folder(self._study.folder, number) / "traces.png"
        if traces.exists():
            recorder.artifact(traces, folder="pictures")
        recorder.end(STATUS[result.outcome])
        # The study is told after its observers are.
        best = self._study.best()
        scores = [] if best is None else [best.values[0]]
        if result.outcome is Outcome.FINISHED and result.score is not None:
            scores.append(result.score)
        if scores:
            self._study_recorder.metrics({"best_score": max(scores)}, step=number)

    def close(self, artifacts: Sequence[Path] = (), *, finished: bool, wait_seconds: float = 20.0) -> bool:
        """Send what waits, for a bounded time.

        Args:
            artifacts: files of the study to show.
            finished: the search has ended; otherwise it will go on.
            wait_seconds: what has not arrived by then is sent by the next command.

        Returns:
            Whether everything has arrived.
        """
        for path in artifacts:
            self._study_recorder.artifact(path)
        best = self._study.best()
        if best is not None:
            self._study_recorder.tags({"best_run": str(best.number), "best_score": f"{best.values[0]:.6f}"})
        self._study_recorder.tags({"outcome": "finished" if finished else "interrupted"})
        if finished:
            self._study_recorder.end("FINISHED")
        deadline = time.monotonic() + wait_seconds
        while not self._is_sent() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        return self._is_sent()

    def _study_tags(self) -> dict[str, str]:
        name = self._study.folder.name
        return {NAME_TAG: name, "study": name, "kind": "study"}

    def _open(self, folder: Path, run_id: str, tags: Mapping[str, str]) -> Recorder:
        recorder = Recorder(
            folder, uri=self._uri, experiment=self._study.space.name, run_id=run_id, tags=tags
        )
        self._spools[folder] = recorder.spool
        return recorder

    def _is_sent(self) -> bool:
        return all(spool.is_empty for spool in list(self._spools.values()))

    def _send_forever(self) -> None:
        senders: dict[tuple[str, str], object] = {}
        warned = False
        while not self._closing.is_set():
            try:
                # The parent's spool is the first: children name it.
                for spool in list(self._spools.values()):
                    while not spool.is_empty and send_waiting(spool, senders):  # type: ignore[arg-type]
                        pass
                warned = False
            except Exception as error:
                if not warned:
                    logger.warning("MLflow does not answer, will try again: %s", error)
                warned = True
            self._closing.wait(_PAUSE_SECONDS)


def recorded_steps(folder: Path) -> set[int]:
    """Return the epochs whose numbers are in a run's spool already, sent or not."""
    path = folder / EVENTS_FILE
    if not path.exists():
        return set()
    steps = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event["kind"] == "metrics":
            steps.add(int(event["step"]))
    return steps
