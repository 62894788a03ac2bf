"""Members of an ensemble: what each of them is, and how one is trained and made to predict."""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from data.recording import Recording, Tier, open_store
from ensembles.holdout import HOLDOUT, store_holdout
from training.checkpoint import CheckpointError, load_checkpoint, read_info, sha256_of
from training.inference import store_predictions
from training.predictions import PredictionStore
from training.results import EpochReport, Outcome, RunResult
from training.run import describe, result_plain, run
from training.run_folder import RunFolder, read_json, write_json
from training.spec import RunSpec

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_LOCK_SECONDS = 60.0

OnEpoch = Callable[[str, EpochReport], None]
"""Called with the name of a member after each of its epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an ensemble.

    Attributes:
        name: in tables, folders and the manifest.
        spec: the run that it is.
        source: checkpoint of a run that exists already; None trains one.
        teacher: name of the member whose encoder it learns from.
        trunk: name of the member whose core it shares: it is one of its heads, and not trained itself.
        is_pooled: whether it is averaged; a trunk with all its heads is not, its heads are.
    """

    name: str
    spec: RunSpec
    source: Path | None = None
    teacher: str | None = None
    trunk: str | None = None
    is_pooled: bool = True

    @property
    def architecture(self) -> str:
        """The group it belongs to where weights are shared by architecture."""
        return self.spec.family


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJob:
    """All that a process must know to make a member.

    Attributes:
        member: which one; the teacher's checkpoint stands in its spec.
        folder: the member's run folder.
        store: the recordings.
        sessions: those to train on and to predict.
        predictions: folder of the prediction store.
        tiers: what to predict beside the common hold-out trials.
        holdout: hold-out trials of all members by session; empty without any.
        threads: of the CPU, for torch.
    """

    member: Member
    folder: Path
    store: Path
    sessions: tuple[str, ...]
    predictions: Path
    tiers: tuple[Tier, ...]
    holdout: tuple[tuple[str, tuple[int, ...]], ...]
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberResult:
    """How the making of a member ended.

    Attributes:
        name: of the member.
        outcome: finished or failed.
        checkpoint: folder of its kept encoder.
        score: hold-out score of its run.
        epochs: trained.
        train_seconds: of training, those before interruptions included.
        predict_seconds: per predicted trial; None where all predictions were there already.
        error: why it failed, in words.
    """

    name: str
    outcome: Outcome
    checkpoint: Path | None = None
    score: float | None = None
    epochs: int = 0
    train_seconds: float = 0.0
    predict_seconds: float | None = None
    error: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the member can be averaged."""
        return self.outcome is Outcome.FINISHED


Executor = Callable[[Sequence[MemberJob], OnEpoch], Iterator[MemberResult]]
"""Makes members, in any order, and yields how each of them ended."""


def make_here(jobs: Sequence[MemberJob], on_epoch: OnEpoch) -> Iterator[MemberResult]:
    """Make members one after another in this process."""
    for job in jobs:
        yield make_member(job, on_epoch)


def make_member(
    job: MemberJob, on_epoch: OnEpoch, *, train: Callable[[MemberJob, OnEpoch], RunResult] | None = None
) -> MemberResult:
    """Train a member unless it is trained, and store its predictions unless they are stored.

    Interrupted at any point, the same call goes on. What the member itself is to blame for makes it fail
    with the reason; errors of ours are raised.

    Args:
        job: which member, and where.
        on_epoch: called after each epoch.
        train: trains the run, in this process unless given.
    """
    name = job.member.name
    with _locked(job.folder):
        try:
            result = trained_before(job.folder)
            if result is None:
                result = _make_run(job, on_epoch, train or _train_here)
            if not result.is_usable or result.checkpoint is None:
                return result
            return replace(result, predict_seconds=_predict(job, result.checkpoint))
        except (ValueError, OSError, MemoryError) as error:
            logger.error("member %s failed: %s", name, error)
            return MemberResult(name=name, outcome=Outcome.FAILED, error=f"{type(error).__name__}: {error}")


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
    by_name = {recording.session: recording for recording in open_store(store)}
    return tuple(by_name[session] for session in sessions)


def require_whole(checkpoint: Path) -> str:
    """Return the sha256 of a checkpoint after reading it all.

    Raises:
        CheckpointError: it was changed.
    """
    info = read_info(checkpoint)
    found = sha256_of(checkpoint / "state.pt")
    if found != info.sha256:
        raise CheckpointError(
            f"sha256 of {checkpoint / 'state.pt'} is {found[:12]}..., but must be {info.sha256[:12]}...: "
            "the file was changed"
        )
    return found


def in_waves(members: Iterable[Member]) -> list[list[Member]]:
    """Return members such that nobody needs a member of the same or a later wave."""
    waves: list[list[Member]] = []
    wave_of: dict[str, int] = {}
    for member in members:
        needed = [name for name in (member.teacher, member.trunk) if name is not None]
        for name in needed:
            if name not in wave_of:
                raise ValueError(f"{member.name} needs {name!r}, but must need an earlier member")
        wave = max((wave_of[name] + 1 for name in needed), default=0)
        wave_of[member.name] = wave
        while len(waves) <= wave:
            waves.append([])
        waves[wave].append(member)
    return waves


__all__ = [
    "HOLDOUT",
    "Executor",
    "Member",
    "MemberJob",
    "MemberResult",
    "in_waves",
    "make_here",
    "make_member",
    "require_whole",
    "trained_before",
]
