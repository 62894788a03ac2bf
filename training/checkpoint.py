"""Checkpoints: tensors in one file, what they belong to in another, safe against crashes.

A checkpoint is a folder ``<name>/`` holding ``state.pt`` (read with ``weights_only=True``: no code is ever
unpickled) and ``checkpoint.json`` (run specification, sessions, versions, sha256 of the state).
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.confined import parse_json, read_small
from data.recording import Recording

FORMAT = 1
STATE_FILE = "state.pt"
INFO_FILE = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what differs and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionIdentity:
    """What makes a session the same session.

    Attributes:
        session: its name.
        num_neurons: neurons recorded.
        neurons_sha256: hash of the unit ids, in the order of the readout's rows.
        fingerprint: hash of the recording's data.
    """

    session: str
    num_neurons: int
    neurons_sha256: str
    fingerprint: str

    @classmethod
    def of(cls, recording: Recording) -> "SessionIdentity":
        """Identify a recording."""
        ids = np.ascontiguousarray(recording.neurons.ids, dtype=np.int64)
        return cls(
            session=recording.session,
            num_neurons=len(ids),
            neurons_sha256=hashlib.sha256(ids.tobytes()).hexdigest(),
            fingerprint=recording.fingerprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint's tensors belong to.

    Attributes:
        spec: the run specification as plain values.
        sessions: the recordings the run was trained on.
        epoch: finished epochs.
        score: hold-out score of the encoder in this checkpoint, None before the first.
        versions: libraries and git commit that wrote it.
        sha256: hash of the state file.
        format: version of this layout.
    """

    spec: Mapping[str, Any]
    sessions: tuple[SessionIdentity, ...]
    epoch: int
    score: float | None
    versions: Mapping[str, str]
    sha256: str = ""
    format: int = FORMAT


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, state: Mapping[str, Any], info: CheckpointInfo) -> CheckpointInfo:
    """Write a checkpoint under a temporary name, flush it to disk, then rename it into place.

    Args:
        folder: where it shall stand.
        state: tensors, numbers, strings, and lists or dictionaries of these.
        info: what it belongs to; its ``sha256`` is filled in.

    Raises:
        OSError: the disk is full or read-only; the checkpoints before it are untouched.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with (temporary / STATE_FILE).open("wb") as file:
            torch.save(dict(state), file)
            os.fsync(file.fileno())
        described = asdict(info) | {"sha256": sha256_of(temporary / STATE_FILE)}
        with (temporary / INFO_FILE).open("w", encoding="utf-8") as text:
            json.dump(described, text, indent=2)
            text.flush()
            os.fsync(text.fileno())
        _swap_in(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return _info_from(described)


def _swap_in(temporary: Path, folder: Path) -> None:
    # Names are made once (one per epoch), so what may stand there already is a damaged try of the same epoch.
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_info(folder: Path) -> CheckpointInfo:
    """Read what a checkpoint belongs to, without its tensors.

    Raises:
        CheckpointError: there is no checkpoint, it is not readable, or it has another format.
    """
    path = folder / INFO_FILE
    try:
        described = parse_json(read_small(path))
        info = _info_from(described)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, but a checkpoint must have it") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint description: {error}") from error
    if info.format != FORMAT:
        raise CheckpointError(f"format of {path} is {info.format}, but this version reads {FORMAT}")
    return info


def _info_from(described: Mapping[str, Any]) -> CheckpointInfo:
    sessions = tuple(SessionIdentity(**session) for session in described["sessions"])
    info = CheckpointInfo(**(dict(described) | {"sessions": sessions}))
    if not isinstance(info.epoch, int) or not isinstance(info.spec, Mapping):
        raise TypeError(f"epoch is {info.epoch!r} and spec a {type(info.spec).__name__}")
    return info


def load_checkpoint(
    folder: Path, *, device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], CheckpointInfo]:
    """Read a checkpoint after checking its hash.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    info = read_info(folder)
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, but {INFO_FILE} beside it describes it")
    found = sha256_of(path)
    if found != info.sha256:
        raise CheckpointError(
            f"sha256 of {path} is {found[:12]}..., but must be {str(info.sha256)[:12]}...: the file was "
            "changed or cut short; use the checkpoint before it"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is no state, or holds more than tensors, numbers and text (weights_only), which is "
            f"never unpickled: {reason}"
        ) from error
    return state, info


def newest_usable(folders: Sequence[Path]) -> Path | None:
    """Return the first of ``folders`` (newest first) that is complete and undamaged."""
    for folder in folders:
        try:
            info = read_info(folder)
            if sha256_of(folder / STATE_FILE) == info.sha256:
                return folder
        except (CheckpointError, OSError):
            continue
    return None


def check_sessions(info: CheckpointInfo, recordings: Iterable[Recording], *, source: Path) -> None:
    """Refuse recordings that are not those of the checkpoint.

    Raises:
        CheckpointError: listing every difference.
    """
    expected = {session.session: session for session in info.sessions}
    problems: list[str] = []
    for recording in recordings:
        found = SessionIdentity.of(recording)
        if found.session not in expected:
            problems.append(f"{found.session} is not in it (it has {', '.join(expected)})")
            continue
        wanted = expected[found.session]
        if found.num_neurons != wanted.num_neurons:
            problems.append(f"{found.session} has {found.num_neurons} neurons, it has {wanted.num_neurons}")
        elif found.neurons_sha256 != wanted.neurons_sha256:
            problems.append(f"{found.session} has other neuron ids or another order of them")
        elif found.fingerprint != wanted.fingerprint:
            problems.append(
                f"{found.session} has other trials or data (fingerprint {found.fingerprint[:12]}..., "
                f"it has {wanted.fingerprint[:12]}...): use the recording it was trained on"
            )
    if problems:
        raise CheckpointError(f"checkpoint {source} does not fit the recordings: " + "; ".join(problems))
