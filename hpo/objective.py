"""What a worker does with a run: train it, go on where it was interrupted, get by with less memory."""

import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from data.local_copies import local_store
from data.recording import Recording, open_store
from hpo.cluster import ClusterConfig
from hpo.driver import OnEpoch
from hpo.hanging import HangWatch
from hpo.memory import MemoryWatch, too_many_clips
from training.material import SelectOn
from training.ranks import Ranks, from_first
from training.results import EpochReport, Outcome, RunResult
from training.run import describe, run
from training.run_folder import RunFolder
from training.spec import RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingObjective:
    """Train a run on the recordings of a store.

    Attributes:
        store: the recordings.
        sessions: those to train on.
        select_on: what scores of epochs look at.
        threads: of the CPU, for torch.
        memory_bytes: a process that needs more than this ends itself before the machine must choose whom to
            kill; None for no limit.
        run_timeout_seconds: a process that finishes no epoch for so long ends itself; None for no limit.
    """

    store: Path
    sessions: tuple[str, ...]
    select_on: SelectOn = "holdout"
    threads: int = 1
    memory_bytes: int | None = None
    run_timeout_seconds: float | None = None

    def __call__(
        self, spec: RunSpec, folder: Path, on_epoch: OnEpoch, ranks: Ranks | None = None
    ) -> RunResult:
        """Train in this process, one of several or alone."""
        torch.set_num_threads(self.threads)
        recordings, ranks = _recordings(self.store, self.sessions), ranks or Ranks()
        with alone_in(folder, ranks):
            clips = _affordable(spec, folder)
            if clips == 0:
                return _ended(spec, folder, Outcome.INFEASIBLE, "out of memory with a single clip at a time")
            compute = spec.compute if clips is None else replace(spec.compute, micro_batch=clips)
            # If another process of the run hangs, the first waits for it.
            timeout = self.run_timeout_seconds if ranks.is_first else None
            with (
                MemoryWatch(folder, clips=clips or spec.loader.batch_size, limit_bytes=self.memory_bytes),
                HangWatch(folder, limit_seconds=timeout) as watch,
            ):
                on_epoch = watch.between(on_epoch)
                result = self._train(replace(spec, compute=compute), recordings, folder, on_epoch, ranks)
        return replace(pruned_if_diverged(result), spec=spec)

    def _train(
        self,
        spec: RunSpec,
        recordings: Sequence[Recording],
        folder: Path,
        on_epoch: OnEpoch,
        ranks: Ranks,
    ) -> RunResult:
        for report in finished_epochs(spec, recordings, folder):
            if not from_first(on_epoch(report), ranks=ranks):
                return _ended(spec, folder, Outcome.PRUNED, epochs=report.epoch)
        return run(spec, recordings, folder, on_epoch=on_epoch, ranks=ranks, select_on=self.select_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterObjective:
    """Train a run on workers of its own on a Ray cluster.

    Attributes:
        store: the recordings; all of them are trained on.
        workers: processes that share each batch.
        cpus_per_worker: cores of each.
        gpus_per_worker: GPUs of each.
        select_on: what scores of epochs look at.
        max_failures: how often workers that died are replaced.
        wait_seconds: for room on the cluster.
        run_timeout_seconds: this process ends itself when its workers finish no epoch for so long, waiting
            for machines included; None for no limit.
    """

    store: Path
    workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    select_on: SelectOn = "holdout"
    max_failures: int = 2
    wait_seconds: float = 1200.0
    run_timeout_seconds: float | None = None

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: OnEpoch) -> RunResult:
        """Train on workers and wait for them."""
        # Ray Train is imported in two seconds, by the processes that use it only.
        from training.cluster import train_on_cluster

        with (
            alone_in(folder, Ranks()),
            HangWatch(folder, limit_seconds=self.run_timeout_seconds) as watch,
        ):
            on_epoch = watch.between(on_epoch)
            for report in finished_epochs(spec, open_store(self.store), folder):
                if not on_epoch(report):
                    return _ended(spec, folder, Outcome.PRUNED, epochs=report.epoch)
            result = train_on_cluster(
                spec,
                [self.store],
                folder,
                workers=self.workers,
                gpus_per_worker=self.gpus_per_worker,
                cpus_per_worker=self.cpus_per_worker,
                on_epoch=on_epoch,
                max_failures=self.max_failures,
                wait_seconds=self.wait_seconds,
                select_on=self.select_on,
            )
        return pruned_if_diverged(result)


def make_objective(
    cluster: ClusterConfig,
    recordings: Sequence[Recording],
    *,
    select_on: SelectOn,
    memory_bytes: int | None = None,
) -> TrainingObjective | ClusterObjective:
    """Return what the workers of a cluster do with a run.

    Args:
        cluster: where runs execute.
        recordings: all recordings of one store.
        select_on: what scores of epochs look at.
        memory_bytes: main memory that a worker may use; GPUs are watched by their own allocator.
    """
    if cluster.lane == "train":
        return ClusterObjective(
            store=recordings[0].store,
            workers=cluster.workers_per_run,
            cpus_per_worker=int(cluster.cpus_per_worker),
            gpus_per_worker=int(cluster.gpus_per_worker),
            select_on=select_on,
            max_failures=cluster.max_restarts,
            wait_seconds=cluster.wait_seconds,
            run_timeout_seconds=cluster.run_timeout_seconds,
        )
    return TrainingObjective(
        store=recordings[0].store,
        sessions=tuple(recording.session for recording in recordings),
        select_on=select_on,
        threads=int(cluster.cpus_per_worker),
        memory_bytes=None if cluster.gpus_per_worker > 0 else memory_bytes,
        run_timeout_seconds=cluster.run_timeout_seconds,
    )


def pruned_if_diverged(result: RunResult) -> RunResult:
    """Return the result of a run that diverged as pruned.

    Diverging is what a configuration does, nothing broke: no reason to end a search.
    """
    diverged = result.outcome is Outcome.FAILED and (result.error or "").startswith("NonFiniteLossError")
    return replace(result, outcome=Outcome.PRUNED) if diverged else result


@contextmanager
def alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Wait until no other process trains a run: one that has lost its driver may take a moment to end."""
    if not ranks.is_first:
        from_first(None, ranks=ranks)
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked, so nothing keeps a second process out: %s", folder, error)
        from_first(None, ranks=ranks)
        yield


def finished_epochs(spec: RunSpec, recordings: Sequence[Recording], folder: Path) -> list[EpochReport]:
    """Return the epochs that a run has trained before it was interrupted.

    The driver may have died between an epoch's checkpoint and its report, so all are told again.
    """
    if not folder.exists():
        return []
    loaded = RunFolder(folder, describe(spec, recordings)).load_state(device="cpu")
    return [] if loaded is None else [EpochReport(**report) for report in loaded[0]["reports"]]


def _affordable(spec: RunSpec, folder: Path) -> int | None:
    too_many = too_many_clips(folder)
    return spec.compute.micro_batch if too_many is None else too_many // 2


def _ended(
    spec: RunSpec, folder: Path, outcome: Outcome, error: str | None = None, *, epochs: int = 0
) -> RunResult:
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=outcome,
        score=None,
        score_by_session={},
        epochs=epochs,
        seconds=0.0,
        checkpoint=None,
        error=error,
    )


@cache
def _recordings(store: Path, sessions: tuple[str, ...]) -> tuple[Recording, ...]:
    # A worker trains run after run on the same memory maps.
    by_name = {recording.session: recording for recording in open_store(local_store(store))}
    return tuple(by_name[session] for session in sessions)
