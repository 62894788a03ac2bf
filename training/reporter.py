"""What a run tells MLflow: parameters, numbers of each epoch, pictures, why it failed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.recording import Recording
from training.names import flatten
from training.pictures import draw_curves
from training.results import EpochReport, Outcome, RunResult
from training.run import versions
from training.spec import RunSpec
from training.tracking import Tracker

logger = logging.getLogger(__name__)

STATUS = {
    Outcome.FINISHED: "FINISHED",
    Outcome.PRUNED: "KILLED",
    Outcome.FAILED: "FAILED",
    Outcome.INFEASIBLE: "FAILED",
}


def run_tags(spec: RunSpec, recordings: Sequence[Recording]) -> dict[str, str]:
    """Return the tags that runs are found and filtered by."""
    return {
        "model": spec.family,
        "fold": str(spec.split.fold),
        "seed": str(spec.seed),
        "commit": versions()["commit"],
        "sessions": ",".join(recording.session for recording in recordings),
        "data": ",".join(recording.fingerprint[:12] for recording in recordings),
    }


def epoch_metrics(report: EpochReport) -> dict[str, float]:
    """Return the numbers of an epoch by their names in MLflow."""
    metrics = {
        "loss": report.loss,
        "score": report.score,
        "best_score": report.best_score,
        "learning_rate": report.rate,
        "seconds": report.seconds,
        "clips_per_second": report.clips_per_second,
        "peak_memory_bytes": float(report.peak_memory_bytes),
    }
    return metrics | {f"score/{session}": score for session, score in report.score_by_session.items()}


class Reporter:
    """Reports one run to a tracker, which never makes it wait.

    Args:
        tracker: the run's tracker.
        folder: the run's folder; holds the pictures.
    """

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self._tracker, self._folder = tracker, folder
        self._reports: list[EpochReport] = []

    def start(self, spec: RunSpec, *, tags: Mapping[str, str]) -> None:
        """Report what is going to be run."""
        self._tracker.parameters(flatten(spec))
        self._tracker.tags(tags)

    def epoch(self, report: EpochReport) -> None:
        """Report a finished epoch."""
        self._reports.append(report)
        self._tracker.metrics(epoch_metrics(report), step=report.epoch)

    def finish(self, result: RunResult) -> bool:
        """Report how the run ended, with pictures and the kept encoder.

        Returns:
            Whether everything has arrived; what has not is kept and can be sent later.
        """
        self._tracker.tags(
            {"outcome": str(result.outcome)} | ({"error": result.error} if result.error else {})
        )
        self._draw_curves()
        traces = self._folder / "traces.png"
        if traces.exists():
            self._tracker.artifact(traces, folder="pictures")
        if result.checkpoint is not None:
            self._tracker.artifact(result.checkpoint, folder="checkpoint")
        return self._tracker.finish(STATUS[result.outcome])

    def abandon(self, error: BaseException) -> None:
        """Report that the run ended without a result: interrupted, or by an error of ours."""
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        self._tracker.tags({"error": f"{type(error).__name__}: {error}"})
        self._tracker.finish("KILLED" if interrupted else "FAILED", wait_seconds=5.0)

    def _draw_curves(self) -> None:
        if not self._reports:
            return
        try:
            self._tracker.artifact(draw_curves(self._reports, self._folder / "curves.png"), folder="pictures")
        except OSError as error:
            # A full disk has ended the run already, or will not end it for a picture.
            logger.warning("the learning curves could not be drawn: %s", error)
