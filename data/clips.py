"""Clips: consecutive (or evenly stepped) frames of one trial, batched by session."""

from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipBatch:
    """Clips of one session.

    Straight from the loader the values are raw: grey levels 0..255 (uint8), camera pixels, speed and
    responses as stored (float16 or float32); after ``Normalization`` everything is float32.

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
