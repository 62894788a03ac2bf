"""Runs that exist already: found by folder, by name or in a study, and made members of an ensemble."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensembles.members import Member
from training.checkpoint import CheckpointInfo, read_info
from training.names import nearest
from training.spec import from_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingRun:
    """A run that was trained before.

    Attributes:
        name: of the member that it becomes.
        checkpoint: folder of its kept encoder.
        info: what the checkpoint belongs to.
    """

    name: str
    checkpoint: Path
    info: CheckpointInfo


def member_of_run(run: ExistingRun) -> Member:
    """Return the member that an existing run is; nothing of it is trained."""
    return Member(name=run.name, spec=from_plain(run.info.spec), source=run.checkpoint)


def kept_encoder(folder: Path) -> Path | None:
    """Return the newest kept encoder of a run's folder, or the folder where it is one itself."""
    if (folder / "checkpoint.json").is_file():
        return folder
    return next(iter(sorted((folder / "checkpoints").glob("encoder-*"), reverse=True)), None)


def find_run(run: str, *, root: Path) -> ExistingRun:
    """Return a run by the path of its folder, its name below ``root``, or its id in MLflow.

    Raises:
        ValueError: there is no such run, or it kept no encoder.
    """
    for folder in (Path(run), root / run):
        checkpoint = kept_encoder(folder)
        if checkpoint is not None:
            return _existing(checkpoint, name=_plain_name(folder, root))
    if re.fullmatch(r"[0-9a-f]{32}", run):
        from ensembles.serving import fetch_checkpoint

        return _existing(fetch_checkpoint(run, root=root), name=f"mlflow-{run[:12]}")
    known = [_shown(folder, root) for folder in _run_folders(root)]
    raise ValueError(f"run is {run!r}{nearest(run, known) if known else f', but {root} holds no runs'}")


def runs_of_study(folder: Path, *, top: int) -> Sequence[ExistingRun]:
    """Return the best finished runs of a study, best first.

    Raises:
        ValueError: there is no such study, or fewer of its runs kept their encoder.
    """
    if not (folder / "runs").is_dir():
        known = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise ValueError(
            f"study is {folder.name!r}{nearest(folder.name, known) if known else ''}: no runs in {folder}"
        )
    finished = [
        _existing(checkpoint, name=f"{folder.name}-{path.name}")
        for path in sorted((folder / "runs").iterdir())
        # A search removes the states of runs that have finished, and the encoders of all but the best.
        if (checkpoint := kept_encoder(path)) is not None and not any(path.glob("checkpoints/state-*"))
    ]
    if len(finished) < top:
        raise ValueError(
            f"--top is {top}, but {folder.name} has {len(finished)} finished runs that kept their "
            "checkpoints; a search keeps those of its best runs only"
        )
    finished.sort(key=lambda run: (-(run.info.score or 0.0), run.name))
    return finished[:top]


def _existing(checkpoint: Path, *, name: str) -> ExistingRun:
    # A machine of a cluster starts its processes in a folder of its own.
    checkpoint = checkpoint.absolute()
    return ExistingRun(name=name, checkpoint=checkpoint, info=read_info(checkpoint))


def _plain_name(folder: Path, root: Path) -> str:
    # Numbers of a study's runs alone would clash with another study's.
    shown = _shown(folder, root).replace("/runs/", "/").removeprefix("studies/")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", shown).strip(".-")


def _shown(folder: Path, root: Path) -> str:
    folder, root = folder.resolve(), root.resolve()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name


def _run_folders(root: Path) -> list[Path]:
    patterns = ("*/checkpoints", "studies/*/runs/*/checkpoints")
    return sorted(path.parent for pattern in patterns for path in root.glob(pattern))
