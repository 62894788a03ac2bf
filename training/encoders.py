"""Trained encoders: written so that a checkpoint alone is enough to build one again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.encoder import Encoder, SessionSpec
from training.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint
from training.spec import RunSpec, from_plain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedEncoder:
    """An encoder from a checkpoint.

    Attributes:
        encoder: in evaluation mode, on its device.
        spec: the run that trained it.
        info: what the checkpoint belongs to, its sha256 included.
    """

    encoder: Encoder
    spec: RunSpec
    info: CheckpointInfo


def pack_encoder(
    parameters: Mapping[str, Tensor], sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]
) -> dict[str, Any]:
    """Return what a checkpoint holds of an encoder: parameters, and all it was built from but its config."""
    return {
        "encoder": dict(parameters),
        "frame_shape": list(frame_shape),
        "sessions": [
            {
                "session": spec.session,
                "coordinates_um": spec.coordinates_um,
                "mean_response": spec.mean_response,
            }
            for spec in sessions
        ],
    }


def load_encoder(folder: Path, *, device: torch.device | str = "cpu") -> TrainedEncoder:
    """Build the encoder of a checkpoint.

    Args:
        folder: the checkpoint's folder.
        device: where the encoder shall be.

    Raises:
        CheckpointError: missing, damaged, or not the checkpoint of an encoder.
    """
    state, info = load_checkpoint(folder)
    if "sessions" not in state:
        raise CheckpointError(f"{folder} holds the state of a run, but must hold its kept encoder")
    spec = from_plain(info.spec)
    specs = [
        SessionSpec(
            session=session["session"],
            num_neurons=len(session["coordinates_um"]),
            coordinates_um=session["coordinates_um"],
            mean_response=session["mean_response"],
        )
        for session in state["sessions"]
    ]
    rows, columns = state["frame_shape"]
    with torch.random.fork_rng(devices=[]):
        encoder = spec.model.build(specs, (rows, columns))
    encoder.load_state_dict(state["encoder"])
    return TrainedEncoder(encoder=encoder.to(device).eval(), spec=spec, info=info)
