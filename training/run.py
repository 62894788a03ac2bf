"""One run from specification to result: the same for a command, a search and an ensemble build."""

import dataclasses
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from data.recording import Recording
from models.encoder import Encoder
from training.checkpoint import CheckpointInfo, SessionIdentity
from training.device import resolve_device
from training.fit import FitResult, OnEpoch, OnStep, fit
from training.material import Material, SelectOn
from training.micro_batch import is_out_of_memory
from training.ranks import Ranks
from training.results import Outcome, RunResult
from training.run_folder import RunFolder
from training.spec import RunSpec, to_plain
from training.step import NonFiniteLossError
from training.traces import draw_median_neurons

logger = logging.getLogger(__name__)


def run(
    spec: RunSpec,
    recordings: Sequence[Recording],
    folder: Path,
    *,
    on_epoch: OnEpoch = lambda _: True,
    on_step: OnStep | None = None,
    ranks: Ranks | None = None,
    select_on: SelectOn = "holdout",
) -> RunResult:
    """Train a run in this process, going on from its folder if it was interrupted there.

    A run that cannot be trained ends as failed, one that does not fit into memory even clip by clip as
    infeasible, with the reason; it never gets a score. Errors of ours (and Ctrl-C) are raised.

    Args:
        spec: what to run.
        recordings: sessions to train on.
        folder: the run's folder; its name is the run's name.
        on_epoch: called after each epoch; answers whether to go on.
        on_step: called after each optimizer step.
        ranks: this process among those of the run.
        select_on: what scores of epochs look at, see ``Material.prepare``.
    """
    ranks = ranks or Ranks()
    started = time.monotonic()
    try:
        result = _train(spec, recordings, folder, on_epoch, on_step, ranks=ranks, select_on=select_on)
    except (NonFiniteLossError, ValueError, MemoryError, OSError, RuntimeError) as error:
        is_infeasible = is_out_of_memory(error)
        if not is_infeasible and type(error) is RuntimeError:
            raise
        logger.error("run %s failed: %s", folder.name, error)
        return _failed(
            spec,
            folder,
            error,
            outcome=Outcome.INFEASIBLE if is_infeasible else Outcome.FAILED,
            seconds=time.monotonic() - started,
        )
    kept = RunFolder(folder, describe(spec, recordings)).kept
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=Outcome.PRUNED if result.stopped else Outcome.FINISHED,
        score=result.score,
        score_by_session=result.score_by_session,
        epochs=len(result.reports),
        seconds=sum(report.seconds for report in result.reports),
        checkpoint=kept,
        error=None,
    )


def _train(
    spec: RunSpec,
    recordings: Sequence[Recording],
    folder: Path,
    on_epoch: OnEpoch,
    on_step: OnStep | None,
    *,
    ranks: Ranks,
    select_on: SelectOn,
) -> FitResult:
    device = resolve_device(spec.compute.device, local_rank=ranks.local_rank)
    material = Material.prepare(recordings, spec, device=device, select_on=select_on)
    encoder = material.build_encoder()
    run_folder = RunFolder(folder, describe(spec, recordings))
    result = fit(encoder, material, spec, on_epoch=on_epoch, on_step=on_step, folder=run_folder, ranks=ranks)
    if ranks.is_first and not result.stopped:
        _draw(encoder, material, folder / "traces.png")
    return result


def _draw(encoder: Encoder, material: Material, path: Path) -> None:
    try:
        draw_median_neurons(encoder, material, path)
    except (OSError, RuntimeError, MemoryError) as error:
        # A run that is trained and kept must not fail by a picture.
        logger.warning("%s could not be drawn: %s", path, error)


def _failed(
    spec: RunSpec, folder: Path, error: BaseException, *, outcome: Outcome, seconds: float
) -> RunResult:
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=outcome,
        score=None,
        score_by_session={},
        epochs=0,
        seconds=seconds,
        checkpoint=None,
        error=f"{type(error).__name__}: {error}",
    )


def describe(spec: RunSpec, recordings: Sequence[Recording]) -> CheckpointInfo:
    """Return what every checkpoint of a run belongs to."""
    return CheckpointInfo(
        spec=to_plain(spec),
        sessions=tuple(SessionIdentity.of(recording) for recording in recordings),
        epoch=0,
        score=None,
        versions=versions(),
    )


@cache
def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and the git commit ("unknown" outside a checkout)."""
    packages = {name: version(name) for name in ("striate", "torch", "numpy")}
    return packages | {"python": platform.python_version(), "commit": _commit()}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def result_plain(result: RunResult) -> Mapping[str, object]:
    """Return a result as plain values, for ``result.json``."""
    plain = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    plain["spec"] = to_plain(result.spec)
    plain["score_by_session"] = dict(result.score_by_session)
    plain["checkpoint"] = None if result.checkpoint is None else str(result.checkpoint)
    return plain
