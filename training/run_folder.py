"""The folder of one run: checkpoints to go on from, the kept encoder, the result."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.confined import parse_json, read_small
from training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    newest_usable,
    save_checkpoint,
)

logger = logging.getLogger(__name__)


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
        """Write what is needed to go on after ``epoch``, then remove what no kept state needs.

        The encoder that the state names as kept must have been written before.
        """
        save_checkpoint(self._checkpoints / f"state-{epoch:04d}", state, self._described(epoch, score))
        # Two states in a row name at most two encoders, and these are the newest.
        for kind in ("state", "encoder"):
            for old in self._newest_first(kind)[self._num_states :]:
                shutil.rmtree(old, ignore_errors=True)

    def save_kept(self, packed: Mapping[str, Any], *, epoch: int, score: float) -> Path:
        """Write the encoder that the run would be left with if it ended now, unless it is written.

        Args:
            packed: from ``training.encoders.pack_encoder``.
            epoch: finished epochs.
            score: its hold-out score.

        Returns:
            The checkpoint's folder.
        """
        folder = self._checkpoints / f"encoder-{epoch:04d}"
        save_checkpoint(folder, packed, self._described(epoch, score))
        return folder

    def load_state(
        self, *, device: torch.device | str
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return the newest undamaged state and the encoder it names as kept (empty before the first).

        None when the run has not finished an epoch.

        Raises:
            CheckpointError: there are states, but all are damaged, or they are of another run.
        """
        folders = self._newest_first("state")
        for folder in folders:
            if newest_usable([folder]) is None:
                logger.warning("%s is damaged; going on from the state before it", folder)
                continue
            state, info = load_checkpoint(folder, device=device)
            self._require_same_run(info, folder)
            if state["kept_epoch"] == 0:
                return state, {}
            kept = newest_usable([self._checkpoints / f"encoder-{state['kept_epoch']:04d}"])
            if kept is not None:
                return state, load_checkpoint(kept, device=device)[0]["encoder"]
            logger.warning("the encoder that %s needs is damaged; going on from the state before it", folder)
        if folders:
            raise CheckpointError(
                f"all {len(folders)} states in {self._checkpoints} are damaged; remove the folder "
                "to start the run again"
            )
        return None

    def _require_same_run(self, found: CheckpointInfo, folder: Path) -> None:
        mine, other = _result_values(self._info.spec), _result_values(found.spec)
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                raise CheckpointError(
                    f"{name} is {mine.get(name)}, but {folder} was written with {other.get(name)}: "
                    "use another folder, or the run's own settings"
                )
        if found.sessions != self._info.sessions:
            theirs = ", ".join(session.session for session in found.sessions)
            raise CheckpointError(
                f"the recordings are not those of {folder}, which was written with {theirs}: "
                "other sessions, another order of them, or other data"
            )

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


def _result_values(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the result, as JSON gives it back; where it is computed may change."""
    plain = json.loads(json.dumps(spec))
    values = {name: value for name, value in plain["values"].items() if not name.startswith("compute.")}
    return values | {"model": plain["model"], "schedule": plain["schedule"]}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds something else.
    """
    try:
        content = parse_json(read_small(path))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
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
