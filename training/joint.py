"""Clips of several sessions computed together: one pass of the core, then each session's readout."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.clips import ClipBatch
from models.encoder import Encoder
from training.device import ComputeConfig, autocast

Part = Sequence[ClipBatch]
"""Clips of one or more sessions that are computed together, one batch for each session."""


def cut_parts(batches: Part, size: int) -> list[list[ClipBatch]]:
    """Cut batches, one behind the other, into parts of at most ``size`` clips; a batch may span parts."""
    parts: list[list[ClipBatch]] = []
    room = 0
    for batch in batches:
        start = 0
        while start < len(batch):
            if room == 0:
                parts.append([])
                room = size
            piece = batch.select(slice(start, start + room))
            parts[-1].append(piece)
            start, room = start + len(piece), room - len(piece)
    return parts


def predict_own(
    encoder: Encoder, part: Part, compute: ComputeConfig
) -> list[tuple[Float[Tensor, "_b _n t"], Float[Tensor, "_b _n t"]]]:
    """Return the rates of each session's clips for its own neurons, and the responses of the same frames."""
    with autocast(compute, part[0].video.device):
        features = _features(encoder, part)
        rates = [
            encoder.read(own, clips.behavior, clips.pupil, session=clips.session).float()
            for clips, own in zip(part, features.split([len(clips) for clips in part]), strict=True)
        ]
    pairs = []
    for clips, predicted in zip(part, rates, strict=True):
        assert clips.responses is not None
        pairs.append((predicted, clips.responses[..., -predicted.shape[2] :]))
    return pairs


def predict_all(
    encoder: Encoder, part: Part, compute: ComputeConfig, *, sessions: Sequence[str]
) -> dict[str, Float[Tensor, "b _n t"]]:
    """Return the rates of all clips for the neurons of all sessions."""
    with autocast(compute, part[0].video.device):
        features = _features(encoder, part)
        behavior, pupil = (_joined(part, name) for name in ("behavior", "pupil"))
        return {
            session: encoder.read(features, behavior, pupil, session=session).float() for session in sessions
        }


def own_pairs(part: Part, sessions: Sequence[str]) -> Bool[Tensor, "b s"]:
    """Return for each clip of a part which session recorded it."""
    column = [sessions.index(clips.session) for clips in part for _ in range(len(clips))]
    own = torch.zeros(len(column), len(sessions), dtype=torch.bool)
    own[torch.arange(len(column)), column] = True
    return own.to(part[0].video.device)


def own_responses(part: Part, *, num_frames: int) -> Mapping[str, Float[Tensor, "_b _n t"]]:
    """Return the last frames of the recorded responses, by session."""
    responses = {}
    for clips in part:
        assert clips.responses is not None
        responses[clips.session] = clips.responses[..., -num_frames:]
    return responses


def _features(encoder: Encoder, part: Part) -> Float[Tensor, "b d t h w"]:
    features: Tensor = encoder.features(*(_joined(part, name) for name in ("video", "behavior", "pupil")))
    return features


def _joined(part: Part, name: str) -> Tensor:
    tensors = [getattr(clips, name) for clips in part]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
