"""The driver of a search: what is run next, when a run is stopped, when the whole search ends.

It knows the study and whoever watches; what executes the runs (this process, or Ray in ``hpo/cluster.py``)
calls ``next``, ``epoch`` and ``ended``.
"""

import errno
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from hpo.hanging import why_it_hung
from hpo.identity import StudyError
from hpo.memory import too_many_clips
from hpo.study import Asked, Study, run_folder
from training.results import EpochReport, Outcome, RunResult
from training.spec import RunSpec

OnEpoch = Callable[[EpochReport], bool]
Objective = Callable[[RunSpec, Path, OnEpoch], RunResult]
"""Trains a run in a folder and goes on where the folder ends. Tells every epoch, also those from before an
interruption, and stops when the answer is False. It is pickled into workers."""

_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_WATCHED_RUNS = 10
_MANY_INFEASIBLE = 200


class Observer(Protocol):
    """Watches a search; called in the driver only, once for every event."""

    def started(self, asked: Asked) -> None:
        """A run begins, or goes on."""

    def epoch(self, number: int, report: EpochReport) -> None:
        """A run has finished an epoch; told again after a restart."""

    def ended(self, number: int, result: RunResult) -> None:
        """A run has ended; called before the study is told, and again if the driver dies in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a search ends.

    Attributes:
        runs: in all, those of earlier drivers included; infeasible points do not count.
        seconds: wall time of this driver; what still runs then goes on with the next driver.
        gpu_seconds: time of GPUs used by all runs of this driver.
        gpus_per_run: GPUs of one run.
    """

    runs: int = 20
    seconds: float | None = None
    gpu_seconds: float | None = None
    gpus_per_run: float = 0.0


class Driver:
    """Decides for a study.

    Args:
        study: what is driven.
        limits: when it ends.
        observers: who watches.
        check: returns why a run cannot be made on this device, or None.
    """

    def __init__(
        self,
        study: Study,
        limits: Limits,
        *,
        observers: Sequence[Observer] = (),
        check: Callable[[RunSpec], str | None] = lambda _: None,
    ) -> None:
        self.study, self.limits, self._observers, self._check = study, limits, observers, check
        self.stopping: str | None = None
        self._started = time.monotonic()
        self._gpu_seconds = 0.0
        self._reports: dict[int, dict[int, EpochReport]] = {}
        self._clips: dict[int, int] = {}
        self._failures: deque[str | None] = deque(maxlen=_WATCHED_RUNS)

    def stop(self, reason: str) -> None:
        """Start nothing more, and let every run stop at the end of its epoch, to be gone on with later."""
        self.stopping = self.stopping or reason

    def next(self) -> Asked | None:
        """Return the next run to make, None when there is none (now, or at all)."""
        for _ in range(_MANY_INFEASIBLE):
            self._stop_in_time()
            if self.stopping is not None:
                return None
            asked = self.study.ask(total=self.limits.runs)
            if asked is None:
                return None
            if self._can_run(asked):
                return asked
        raise StudyError(
            f"{_MANY_INFEASIBLE} points in a row cannot run on this device: narrow the space (--narrow), "
            "use --scale demo, or a machine with more memory"
        )

    def _can_run(self, asked: Asked) -> bool:
        self._reports[asked.number] = {}
        clips = too_many_clips(self.folder(asked.number))
        if clips is not None:
            self._clips[asked.number] = clips
        if asked.resumed and self.study.is_stopped(asked.number):
            self._end(asked.number, self._stopped_result(asked.number))
            return False
        reason = asked.reason if asked.spec is None else self._check(asked.spec)
        self._tell(lambda observer: observer.started(asked))
        if reason is not None:
            self._end(asked.number, self.result(asked.number, Outcome.INFEASIBLE, reason))
        return reason is None

    def epoch(self, number: int, report: EpochReport) -> bool:
        """Pass an epoch to the study; answer whether the run goes on."""
        if report.epoch not in self.study.curve(number):
            self._gpu_seconds += self.limits.gpus_per_run * report.seconds
        self._reports[number][report.epoch] = report
        self._stop_in_time()
        self._tell(lambda observer: observer.epoch(number, report))
        if self.study.report(number, report):
            return self.stopping is None
        self._end(number, self._stopped_result(number))
        return False

    def ended(self, number: int, result: RunResult) -> None:
        """Note how a run ended, unless it was stopped from here."""
        if number not in self.study.live:
            return
        if self.stopping is not None and result.outcome is Outcome.PRUNED and result.error is None:
            self.study.leave(number)
        elif result.outcome is Outcome.FAILED and (reason := whose_fault(result.error)) is not None:
            # It says nothing about the run, and the next one would fail as well.
            self.stop(f"run {number} failed, {reason}: {result.error}")
            self.study.leave(number)
        else:
            self._end(number, result)

    def died(self, number: int, reason: str, *, again: bool = False) -> None:
        """Note that a run's process died.

        A run that hung would hang again. While stopping, another is left for the next driver. If it had too
        little memory it is made again in smaller parts; they get too small after some attempts.

        Args:
            number: of the run.
            reason: if this was once too often.
            again: it was not.
        """
        if number not in self.study.live:
            return
        hung = why_it_hung(self.folder(number))
        if hung is not None:
            self._end(number, self.result(number, Outcome.FAILED, hung))
            return
        clips = too_many_clips(self.folder(number))
        shrinks = clips is not None and clips < self._clips.get(number, math.inf)
        if again or shrinks or self.stopping is not None:
            self.study.leave(number)
        else:
            self._end(number, self.result(number, Outcome.FAILED, reason))

    def folder(self, number: int) -> Path:
        """Return the folder of a run."""
        return run_folder(self.study.folder, number)

    def run_here(self, objective: Objective) -> None:
        """Make the runs in this process, one after the other."""
        while (asked := self.next()) is not None:
            assert asked.spec is not None
            on_epoch = partial(self.epoch, asked.number)
            self.ended(asked.number, objective(asked.spec, self.folder(asked.number), on_epoch))

    def result(self, number: int, outcome: Outcome, error: str | None = None) -> RunResult:
        """Return the result of a run that did not return one itself."""
        reports = list(self._reports.get(number, {}).values())
        scored = outcome is Outcome.PRUNED and bool(reports)
        best = max(reports, key=lambda report: report.score, default=None) if scored else None
        return RunResult(
            run_id=self.folder(number).name,
            spec=self.study.space.base,
            outcome=outcome,
            score=None if best is None else best.score,
            score_by_session={} if best is None else best.score_by_session,
            epochs=len(reports),
            seconds=sum(report.seconds for report in reports),
            checkpoint=None,
            error=error,
        )

    def _stopped_result(self, number: int) -> RunResult:
        scores = self.study.curve(number).values()
        error = None if all(map(math.isfinite, scores)) else "the score is not a number"
        return self.result(number, Outcome.PRUNED, error)

    def _end(self, number: int, result: RunResult) -> None:
        self._tell(lambda observer: observer.ended(number, result))
        self.study.tell(number, result)
        self._reports.pop(number, None)
        if result.outcome is not Outcome.INFEASIBLE:
            self._failures.append(result.error if result.outcome is Outcome.FAILED else None)
        reasons = [reason for reason in self._failures if reason is not None]
        if len(reasons) > _WATCHED_RUNS / 2:
            common = Counter(reasons).most_common(1)[0][0]
            self.stop(f"{len(reasons)} of the last {len(self._failures)} runs failed, mostly with: {common}")

    def _stop_in_time(self) -> None:
        elapsed = time.monotonic() - self._started
        if self.limits.seconds is not None and elapsed >= self.limits.seconds:
            self.stop("the time budget is used up")
        if self.limits.gpu_seconds is not None and self._gpu_seconds >= self.limits.gpu_seconds:
            self.stop("the GPU budget is used up")

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            event(observer)


def whose_fault(error: str | None) -> str | None:
    """Return what is to be done where a run failed through no fault of its own, None where it did.

    Its disk was full, read-only, broken or gone, or the cluster had no room for its workers.
    """
    if error is not None and any(f"[Errno {code}]" in error for code in _STORAGE_ERRORS):
        return "as it could not write; make room, or mount the storage again"
    if error is not None and "the cluster had no room for" in error:
        return "as no machine was there; see `ray status` for why, --wait sets the time"
    return None
