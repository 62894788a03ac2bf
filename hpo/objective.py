"""What a worker does with a run: train it, go on where it was interrupted, get by with less memory."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from data.recording import Recording, open_store
from hpo.driver import OnEpoch
from training.material import SelectOn
from training.results import EpochReport, Outcome, RunResult
from training.run import describe, run
from training.run_folder import RunFolder, read_json, write_json
from training.spec import RunSpec

MEMORY_FILE = "micro_batch.json"
"""Says with how many clips at once the run had too little memory."""


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
    """

    store: Path
    sessions: tuple[str, ...]
    select_on: SelectOn = "holdout"
    threads: int = 1
    memory_bytes: int | None = None

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: OnEpoch) -> RunResult:
        """Train in this process."""
        torch.set_num_threads(self.threads)
        recordings = _recordings(self.store, self.sessions)
        clips = _affordable(spec, folder)
        if clips == 0:
            return _ended(spec, folder, Outcome.INFEASIBLE, "out of memory with a single clip at a time")
        chosen = spec if clips is None else replace(spec, compute=replace(spec.compute, micro_batch=clips))
        with MemoryWatch(folder, clips=clips or spec.loader.batch_size, limit_bytes=self.memory_bytes):
            result = self._train(chosen, recordings, folder, on_epoch)
        # Diverging is what a configuration does, nothing broke: no reason to end a search.
        diverged = result.outcome is Outcome.FAILED and (result.error or "").startswith("NonFiniteLossError")
        return replace(result, spec=spec, outcome=Outcome.PRUNED if diverged else result.outcome)

    def _train(
        self, spec: RunSpec, recordings: Sequence[Recording], folder: Path, on_epoch: OnEpoch
    ) -> RunResult:
        for report in finished_epochs(spec, recordings, folder):
            if not on_epoch(report):
                return _ended(spec, folder, Outcome.PRUNED, epochs=report.epoch)
        return run(spec, recordings, folder, on_epoch=on_epoch, select_on=self.select_on)


def finished_epochs(spec: RunSpec, recordings: Sequence[Recording], folder: Path) -> list[EpochReport]:
    """Return the epochs that a run has trained before it was interrupted.

    The driver may have died between an epoch's checkpoint and its report, so all are told again.
    """
    if not folder.exists():
        return []
    loaded = RunFolder(folder, describe(spec, recordings)).load_state(device="cpu")
    return [] if loaded is None else [EpochReport(**report) for report in loaded[0]["reports"]]


class MemoryWatch:
    """Ends this process when it needs more memory than it may; the run's next attempt computes fewer clips.

    Without it, Ray's or the kernel's killer acts, and may take other runs.

    Args:
        folder: the run's folder.
        clips: computed at once now.
        limit_bytes: resident memory of this process; None watches nothing.
    """

    def __init__(self, folder: Path, *, clips: int, limit_bytes: int | None) -> None:
        self._folder, self._clips, self._limit = folder, clips, limit_bytes
        self._done = threading.Event()

    def __enter__(self) -> "MemoryWatch":
        if self._limit is not None:
            threading.Thread(target=self._watch, name="memory", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            if self._limit is not None and resident_bytes() > self._limit:
                write_json(self._folder / MEMORY_FILE, {"too_many": self._clips})
                os._exit(137)


def resident_bytes() -> int:
    """Return this process's resident memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _affordable(spec: RunSpec, folder: Path) -> int | None:
    path = folder / MEMORY_FILE
    return int(read_json(path)["too_many"]) // 2 if path.exists() else spec.compute.micro_batch


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
    by_name = {recording.session: recording for recording in open_store(store)}
    return tuple(by_name[session] for session in sessions)
