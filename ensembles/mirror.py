"""What a build tells MLflow: a parent run for the build, a child run for each member that is trained."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.recording import Recording
from ensembles.assessment import Assessment
from ensembles.evidence import METRICS
from ensembles.manifest import MANIFEST_FILE
from ensembles.members import Member, MemberResult
from ensembles.plan import BuildPlan
from training.names import flatten
from training.reporter import STATUS, epoch_metrics, run_tags
from training.results import EpochReport
from training.run import versions
from training.spool import Spool
from training.tracking import PARENT_TAG, Recorder, send_waiting
from training.tracking_view import NAME_TAG

logger = logging.getLogger(__name__)

EXPERIMENT = "ensembles"
_PAUSE_SECONDS = 0.5
_UID_FILE = "tracking.uid"


class BuildMirror:
    """Records a build in MLflow from a thread of its own; what cannot be sent waits in the build's folder.

    Args:
        plan: of the build.
        recordings: the sessions.
        uri: MLflow tracking URI.
    """

    def __init__(self, plan: BuildPlan, recordings: Sequence[Recording], *, uri: str) -> None:
        self._plan, self._recordings, self._uri = plan, recordings, uri
        self.run_id = f"{plan.name}-{_uid(plan.folder)}"
        self._spools: list[Spool] = []
        self._members: dict[str, Recorder] = {}
        self._closing = threading.Event()
        self._warned = False
        self._build = self._open(plan.folder, self.run_id, self._tags())
        self._build.tags({"outcome": "running"})
        self._build.parameters({"recipe": plan.recipe, "scale": plan.scale, "blend": plan.blend})
        self._thread = threading.Thread(target=self._send_forever, name="mirror", daemon=True)
        self._thread.start()

    def _tags(self) -> dict[str, str]:
        return {
            NAME_TAG: self._plan.name,
            "kind": "build",
            "recipe": self._plan.recipe,
            "members": str(len(self._plan.members)),
            "commit": versions()["commit"],
            "sessions": ",".join(recording.session for recording in self._recordings),
            "data": ",".join(recording.fingerprint[:12] for recording in self._recordings),
        }

    def started(self, members: Sequence[Member]) -> None:
        """Begin the child runs of members that may be trained now."""
        for member in members:
            if member.source is not None:
                continue
            tags = run_tags(member.spec, self._recordings) | {
                PARENT_TAG: self.run_id,
                NAME_TAG: member.name,
                "build": self._plan.name,
                "member": member.name,
                "kind": "member",
            }
            folder = self._plan.member_folder(member.name)
            is_new = Spool(folder).is_empty
            recorder = self._open(folder, f"{self.run_id}-{member.name}", tags)
            self._members[member.name] = recorder
            if is_new:
                recorder.parameters(flatten(member.spec))

    def epoch(self, name: str, report: EpochReport) -> None:
        """Record a finished epoch of a member."""
        if name in self._members:
            self._members[name].metrics(epoch_metrics(report), step=report.epoch)

    def ended(self, result: MemberResult) -> None:
        """Record how a member ended."""
        recorder = self._members.pop(result.name, None)
        if recorder is None:
            return
        recorder.tags({"outcome": str(result.outcome)} | ({"error": result.error} if result.error else {}))
        traces = self._plan.member_folder(result.name) / "traces.png"
        if traces.exists():
            recorder.artifact(traces, folder="pictures")
        if result.checkpoint is not None:
            recorder.artifact(result.checkpoint, folder="checkpoint")
        recorder.end(STATUS[result.outcome])

    def assessed(self, assessment: Assessment) -> None:
        """Record scores, report and manifest."""
        self._build.metrics(build_metrics(assessment), step=0)
        manifest = assessment.manifest
        self._build.tags(
            {
                "blend": manifest.blend,
                "chosen_on": manifest.chosen_on,
                "reported_on": manifest.reported_on,
                "protocol": manifest.protocol,
                "data_sha256": manifest.data_sha256,
            }
        )
        self._build.artifact(assessment.report.parent, folder="report")
        self._build.artifact(self._plan.folder / MANIFEST_FILE)

    def close(self, *, finished: bool, wait_seconds: float = 20.0) -> bool:
        """Send what waits, for a bounded time.

        Args:
            finished: the build has ended well; otherwise the same command goes on with it.
            wait_seconds: what has not arrived by then waits for the next command or ``--sync-tracking``.

        Returns:
            Whether everything has arrived.
        """
        self._build.tags({"outcome": "finished" if finished else "interrupted"})
        if finished:
            self._build.end("FINISHED")
        deadline = time.monotonic() + wait_seconds
        while not self._is_sent() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        return self._is_sent()

    def _open(self, folder: Path, run_id: str, tags: Mapping[str, str]) -> Recorder:
        recorder = Recorder(folder, uri=self._uri, experiment=EXPERIMENT, run_id=run_id, tags=tags)
        self._spools.append(recorder.spool)
        return recorder

    def _is_sent(self) -> bool:
        return all(spool.is_empty for spool in list(self._spools))

    def _send_forever(self) -> None:
        while not self._closing.is_set():
            try:
                # The parent's spool is the first: children name it.
                for spool in list(self._spools):
                    while not spool.is_empty and send_waiting(spool):
                        pass
                self._warned = False
            except Exception as error:
                if not self._warned:
                    logger.warning("MLflow does not answer, will try again: %s", error)
                self._warned = True
            self._closing.wait(_PAUSE_SECONDS)


def build_metrics(assessment: Assessment) -> dict[str, float]:
    """Return the numbers of a build by their names in MLflow."""
    analysis, metrics = assessment.analysis, {}
    for system in analysis.systems:
        for metric in METRICS:
            interval = system.overall[metric]
            metrics[f"{system.name}/{metric}"] = interval.value
            metrics[f"{system.name}/{metric}_low"] = interval.low
            metrics[f"{system.name}/{metric}_high"] = interval.high
    for session, by_metric in analysis.chosen.by_session.items():
        metrics[f"chosen/single_trial/{session}"] = by_metric["single_trial"].value
    metrics["gain/single_trial"] = analysis.gain["single_trial"].value
    metrics["members_used"] = float(len(analysis.choice.used))
    metrics["effective_number"] = analysis.effective_number
    # MLflow keeps NaN, but its tables sort by it.
    return {name: value for name, value in metrics.items() if value == value}


def _uid(folder: Path) -> str:
    """Return a short random name that tells this build from others in a folder of the same name."""
    path = folder / _UID_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(3))
    return path.read_text()
