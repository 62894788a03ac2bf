"""Clips: consecutive (or evenly stepped) frames of one trial, batched by session."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipBatch:
    """Clips of one session.

    Straight from the loader the values are raw: grey levels 0..255 (uint8), camera pixels, speed and
    responses as stored (float16 or float32); after ``Normalization`` everything is float32.
    Behavior, pupil and responses are views of time-major memory (as stored), so they are not contiguous.

    Attributes:
        session: the session all clips come from.
        video: grey levels.
        behavior: pupil dilation, running speed.
        pupil: pupil center, horizontal and vertical.
        responses: activity of the session's neurons, or None where withheld or not asked for.
        trial: index of the trial each clip was cut from.
        start: first frame of each clip within its trial.
        frame_step: trial frames between two frames of a clip.
    """

    session: str
    video: Shaped[Tensor, "b 1 t h w"]
    behavior: Float[Tensor, "b 2 t"]
    pupil: Float[Tensor, "b 2 t"]
    responses: Float[Tensor, "b n t"] | None
    trial: Int[Tensor, " b"]
    start: Int[Tensor, " b"]
    frame_step: int = 1

    def __len__(self) -> int:
        return len(self.start)

    @property
    def num_frames(self) -> int:
        """Frames of each clip."""
        return self.video.shape[2]

    @property
    def frames(self) -> Int[Tensor, "b t"]:
        """The trial frames of each clip."""
        steps = torch.arange(self.num_frames, device=self.start.device)
        return self.start[:, None] + self.frame_step * steps

    def to(self, device: torch.device | str) -> "ClipBatch":
        """Copy the tensors to a device; from pinned memory the copy does not wait."""
        responses = None if self.responses is None else self.responses.to(device, non_blocking=True)
        return replace(
            self,
            video=self.video.to(device, non_blocking=True),
            behavior=self.behavior.to(device, non_blocking=True),
            pupil=self.pupil.to(device, non_blocking=True),
            responses=responses,
            trial=self.trial.to(device, non_blocking=True),
            start=self.start.to(device, non_blocking=True),
        )

    def select(self, clips: slice) -> "ClipBatch":
        """Return some of the clips, sharing memory: micro-batches are cut this way."""
        return replace(
            self,
            video=self.video[clips],
            behavior=self.behavior[clips],
            pupil=self.pupil[clips],
            responses=None if self.responses is None else self.responses[clips],
            trial=self.trial[clips],
            start=self.start[clips],
        )
