"""How one member is made: trained, or taken from an existing run, and made to predict."""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from data.local_copies import local_store
from data.recording import Recording, open_store
from ensembles.holdout import store_holdout
from ensembles.members import MemberJob, MemberResult, OnEpoch
from training.checkpoint import load_checkpoint, read_info
from training.inference import store_predictions
from training.predictions import PredictionStore
from training.results import EpochReport, Outcome, RunResult
from training.run import describe, result_plain, run
from training.run_folder import RunFolder, read_json, write_json

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_LOCK_SECONDS = 60.0


def make_here(jobs: Sequence[MemberJob], on_epoch: OnEpoch) -> Iterator[MemberResult]:
    """Make members one after another in this process."""
    for job in jobs:
        yield make_member(job, on_epoch)


def make_member(job: MemberJob, on_epoch: OnEpoch) -> MemberResult:
    """Train a member unless it is trained, and store its predictions unless they are stored.

    Interrupted at any point, the same call goes on. What the member itself is to blame for makes it fail
    with the reason; errors of ours are raised.

    Args:
        job: which member, and where.
        on_epoch: called after each epoch.
    """

    def make() -> MemberResult:
        result = trained_before(job.folder) or _make_run(job, on_epoch, _train_here)
        if not result.is_usable or result.checkpoint is None:
            return result
        return replace(result, predict_seconds=_predict(job, result.checkpoint))

    return _guarded(job, make)


def train_member(
    job: MemberJob, on_epoch: OnEpoch, *, train: Callable[[MemberJob, OnEpoch], RunResult]
) -> MemberResult:
    """Do the first half of ``make_member`` in another way: train a member unless it is trained.

    Args:
        job: which member, and where.
        on_epoch: called after each epoch.
        train: trains the run.
    """
    return _guarded(job, lambda: trained_before(job.folder) or _make_run(job, on_epoch, train))


def _guarded(job: MemberJob, make: Callable[[], MemberResult]) -> MemberResult:
    """Let no second process into the member's folder, and turn what the member is to blame for to words."""
    with _locked(job.folder):
        try:
            return make()
        except (ValueError, OSError, MemoryError) as error:
            logger.error("member %s failed: %s", job.member.name, error)
            return MemberResult(
                name=job.member.name, outcome=Outcome.FAILED, error=f"{type(error).__name__}: {error}"
            )


def trained_before(folder: Path) -> MemberResult | None:
    """Return the result of a member's finished run, or None where there is still something to train."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    plain = read_json(path)
    if plain["outcome"] != Outcome.FINISHED:
        return None
    return MemberResult(
        name=folder.name,
        outcome=Outcome.FINISHED,
        checkpoint=folder / plain["checkpoint"],
        score=plain["score"],
        epochs=plain["epochs"],
        train_seconds=plain["seconds"],
    )


def _make_run(
    job: MemberJob, on_epoch: OnEpoch, train: Callable[[MemberJob, OnEpoch], RunResult]
) -> MemberResult:
    result = train(job, on_epoch) if job.member.source is None else _adopt(job, job.member.source)
    plain = dict(result_plain(result))
    if result.checkpoint is not None:
        # A build that is moved or copied stays whole.
        plain["checkpoint"] = str(result.checkpoint.relative_to(job.folder))
    write_json(job.folder / RESULT_FILE, plain)
    if result.outcome is Outcome.FINISHED and job.member.source is None:
        RunFolder(job.folder, describe(job.member.spec, _recordings(job))).remove_states()
    return MemberResult(
        name=job.member.name,
        outcome=result.outcome,
        checkpoint=result.checkpoint,
        score=result.score,
        epochs=result.epochs,
        train_seconds=result.seconds,
        error=result.error,
    )


def _train_here(job: MemberJob, on_epoch: OnEpoch) -> RunResult:
    torch.set_num_threads(job.threads)

    def tell(report: EpochReport) -> bool:
        on_epoch(job.member.name, report)
        return True

    return run(job.member.spec, _recordings(job), job.folder, on_epoch=tell)


def _adopt(job: MemberJob, source: Path) -> RunResult:
    """Take the kept encoder of an existing run into the build, without a second copy on the same disk."""
    info = read_info(source)
    checkpoint = (
        job.folder / "checkpoints" / (source.name if source.name.startswith("encoder") else "encoder")
    )
    if not checkpoint.is_dir():
        temporary = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in source.iterdir():
            _link(file, temporary / file.name)
        temporary.rename(checkpoint)
    load_checkpoint(checkpoint)
    return RunResult(
        run_id=job.member.name,
        spec=job.member.spec,
        outcome=Outcome.FINISHED,
        score=info.score,
        score_by_session={},
        epochs=info.epoch,
        seconds=0.0,
        checkpoint=checkpoint,
        error=None,
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _predict(job: MemberJob, checkpoint: Path) -> float | None:
    torch.set_num_threads(job.threads)
    recordings, store = _recordings(job), PredictionStore(root=job.predictions)
    predicted, started = 0, time.monotonic()

    def count(_: object) -> None:
        nonlocal predicted
        predicted += 1

    name = job.member.name
    store_predictions(checkpoint, recordings, store, member=name, tiers=job.tiers, on_trial=count)
    if job.holdout:
        store_holdout(checkpoint, recordings, store, member=name, trials=dict(job.holdout), on_trial=count)
    return (time.monotonic() - started) / predicted if predicted else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process away: workers of a killed build may live on for some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        f"{folder} is in use by another process; wait for it or end it"
                    ) from None
                time.sleep(0.2)
        yield


def _recordings(job: MemberJob) -> tuple[Recording, ...]:
    return _opened(job.store, job.sessions)


@cache
def _opened(store: Path, sessions: tuple[str, ...]) -> tuple[Recording, ...]:
    # A worker makes member after member on the same memory maps.
    by_name = {recording.session: recording for recording in open_store(local_store(store))}
    return tuple(by_name[session] for session in sessions)
