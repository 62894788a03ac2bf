"""The folder of one run: checkpoints to go on from, the kept encoder, the result."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    newest_usable,
    save_checkpoint,
)


class RunFolder:
    """Where a run keeps what must survive it.

    Args:
        path: the folder; made when something is written.
        info: what every checkpoint of the run belongs to; epoch and score are filled in.
        num_states: states to go on from that are kept; more than one, so that a damaged one does no harm.
    """

    def __init__(self, path: Path, info: CheckpointInfo, *, num_states: int = 2) -> None:
        self.path = path
        self._info = info
        self._num_states = num_states

    def save_state(self, state: Mapping[str, Any], *, epoch: int, score: float | None) -> None:
        """Write what is needed to go on after ``epoch``, then remove the oldest such state."""
        save_checkpoint(self._checkpoints / f"state-{epoch:04d}", state, self._described(epoch, score))
        for old in self._newest_first("state")[self._num_states :]:
            shutil.rmtree(old, ignore_errors=True)

    def save_kept(self, packed: Mapping[str, Any], *, epoch: int, score: float) -> Path:
        """Write the encoder that the run would be left with if it ended now.

        Args:
            packed: from ``training.encoders.pack_encoder``.
            epoch: finished epochs.
            score: its hold-out score.

        Returns:
            The checkpoint's folder.
        """
        folder = self._checkpoints / f"encoder-{epoch:04d}"
        save_checkpoint(folder, packed, self._described(epoch, score))
        for old in self._newest_first("encoder"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def load_state(self, *, device: torch.device | str) -> tuple[dict[str, Any], CheckpointInfo] | None:
        """Return the newest undamaged state, None when the run has not finished an epoch.

        Raises:
            CheckpointError: there are states, but all are damaged.
        """
        folders = self._newest_first("state")
        if not folders:
            return None
        folder = newest_usable(folders)
        if folder is None:
            raise CheckpointError(
                f"all {len(folders)} states in {self._checkpoints} are damaged; remove the folder "
                "to start the run again"
            )
        return load_checkpoint(folder, device=device)

    def load_kept(self, *, device: torch.device | str) -> tuple[dict[str, Any], CheckpointInfo] | None:
        """Return the newest undamaged encoder parameters, if there are any."""
        folder = newest_usable(self._newest_first("encoder"))
        return None if folder is None else load_checkpoint(folder, device=device)

    @property
    def kept(self) -> Path | None:
        """Folder of the kept encoder."""
        return next(iter(self._newest_first("encoder")), None)

    def remove_states(self) -> None:
        """Remove what only a run that goes on needs."""
        for folder in self._newest_first("state"):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _newest_first(self, kind: str) -> list[Path]:
        return sorted(self._checkpoints.glob(f"{kind}-*"), reverse=True)

    def _described(self, epoch: int, score: float | None) -> CheckpointInfo:
        info = self._info
        return CheckpointInfo(
            spec=info.spec, sessions=info.sessions, versions=info.versions, epoch=epoch, score=score
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but must hold an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file under a temporary name, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
