"""CutMix: paste a box of another clip into a clip, and mix the responses by the box's area."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.clips import ClipBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMixConfig:
    """How clips are mixed; off by default, ``DWISENEURO_CUTMIX`` has the published setting.

    Two deviations from DwiseNeuro's released code: behavior and pupil are mixed by the box's area, where
    there the box replaces their constant planes inside the box only; and partners are clips of the same
    batch, where there they are drawn anew (a clip alone of its session in a process's batch stays as it is).

    Attributes:
        probability: share of clips that are mixed.
        concentration: both parameters of the beta distribution of the box's nominal area.
        canvas: rows and columns of the area in which the box is drawn, with the video in its middle; None is
            the video's own size. DwiseNeuro puts the video into a square, so that many boxes lie half or
            wholly beside it.
    """

    probability: float = 0.0
    concentration: float = 1.0
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn from."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, but must be between 0 and 1")
        if not self.concentration > 0:
            raise ValueError(f"concentration is {self.concentration}, but must be above 0")
        if self.canvas is not None and min(self.canvas) < 1:
            raise ValueError(f"canvas is {self.canvas}, but must have at least one row and one column")


DWISENEURO_CUTMIX = CutMixConfig(probability=0.5, canvas=(64, 64))
"""DwiseNeuro's released config."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """A box for each clip, on the canvas; clips that are not mixed have an empty one.

    Attributes:
        bounds: first row, row behind the last, first column, column behind the last.
        canvas: rows and columns.
    """

    bounds: Int[np.ndarray, "b 4"]
    canvas: tuple[int, int]

    @property
    def area(self) -> Float[np.ndarray, " b"]:
        """Share of the canvas inside each box."""
        top, bottom, left, right = self.bounds.T
        area: Float[np.ndarray, " b"] = (bottom - top) * (right - left) / (self.canvas[0] * self.canvas[1])
        return area

    def inside(self, height: int, width: int) -> Bool[np.ndarray, "b h w"]:
        """Return which pixels of a video in the middle of the canvas are in the box."""
        top, bottom, left, right = self.bounds.T[:, :, None]
        rows = np.arange(height) + (self.canvas[0] - height) // 2
        columns = np.arange(width) + (self.canvas[1] - width) // 2
        in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        inside: Bool[np.ndarray, "b h w"] = in_rows[:, :, None] & in_columns[:, None, :]
        return inside


def draw_boxes(
    num_clips: int, canvas: tuple[int, int], config: CutMixConfig, *, rng: np.random.Generator
) -> Boxes:
    """Draw a box for each clip.

    Sides are the canvas's times the square root of a beta-distributed share, centers uniform; what sticks out
    is cut off.

    Source:
        Yun et al. 2019, arXiv:1905.04899; as in DwiseNeuro's released code, which takes the square root
        of the share itself and not of its complement (the same law when the distribution is symmetric).
    """
    mixed = rng.random(num_clips) < config.probability
    side = np.sqrt(rng.beta(config.concentration, config.concentration, size=num_clips))
    bounds = np.zeros((num_clips, 4), dtype=np.int64)
    for axis, size in enumerate(canvas):
        half = np.floor(size * side).astype(np.int64) // 2
        center = rng.integers(size, size=num_clips)
        bounds[:, 2 * axis] = np.clip(center - half, 0, size)
        bounds[:, 2 * axis + 1] = np.clip(center + half, 0, size)
    bounds[~mixed] = 0
    return Boxes(bounds=bounds, canvas=canvas)


def draw_partners(batch: ClipBatch, *, rng: np.random.Generator) -> ClipBatch:
    """Return another clip of the batch for each clip, each once; a clip alone is its own partner.

    Deviation from DwiseNeuro's released code, whose partners are fresh clips of the session.
    """
    circle = rng.permutation(len(batch.trial))
    partners = np.empty_like(circle)
    partners[circle] = np.roll(circle, 1)
    order = torch.from_numpy(partners).to(batch.video.device)
    return replace(
        batch,
        video=batch.video[order],
        behavior=batch.behavior[order],
        pupil=batch.pupil[order],
        responses=None if batch.responses is None else batch.responses[order],
        trial=batch.trial[order],
        start=batch.start[order],
    )


def cutmix(
    batch: ClipBatch, partners: ClipBatch, config: CutMixConfig, *, rng: np.random.Generator
) -> ClipBatch:
    """Mix each clip with its partner; ``trial`` and ``start`` stay the clip's own.

    Deviation from DwiseNeuro's released code: there behavior and pupil are image planes, and the box replaces
    them inside the box only. Here they are one signal per clip, which becomes the mean of those planes over
    the canvas: the clip's own and its partner's, weighted by area, like the responses.

    Args:
        batch: clips with responses, already in the form that the loss wants (DwiseNeuro: rectified).
        partners: as many clips of the same session; fresh ones, or ``draw_partners(batch)``.
        config: how.
        rng: decides which clips are mixed and where.

    Raises:
        ValueError: the partners are of another session, number or size, or responses are missing.
    """
    _require_partners(batch, partners, config)
    if config.probability == 0:
        return batch
    height, width = batch.video.shape[-2:]
    boxes = draw_boxes(len(batch.trial), config.canvas or (height, width), config, rng=rng)
    device = batch.video.device
    inside = torch.from_numpy(boxes.inside(height, width)).to(device)[:, None, None]
    area = torch.from_numpy(boxes.area).to(device=device, dtype=torch.float32)[:, None, None]
    assert batch.responses is not None
    assert partners.responses is not None
    return replace(
        batch,
        video=torch.where(inside, partners.video, batch.video),
        behavior=_mix(batch.behavior, partners.behavior, area),
        pupil=_mix(batch.pupil, partners.pupil, area),
        responses=_mix(batch.responses, partners.responses, area),
    )


def _mix(
    own: Float[Tensor, "b c t"], partner: Float[Tensor, "b c t"], area: Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b c t"]:
    return torch.lerp(own.float(), partner.float(), area).to(own.dtype)


def _require_partners(batch: ClipBatch, partners: ClipBatch, config: CutMixConfig) -> None:
    if batch.session != partners.session:
        raise ValueError(f"partners are clips of {partners.session}, but must be of {batch.session}")
    if batch.video.shape != partners.video.shape:
        raise ValueError(
            f"partners of {batch.session} are {tuple(partners.video.shape)}, "
            f"but must be {tuple(batch.video.shape)}"
        )
    if batch.responses is None or partners.responses is None:
        raise ValueError(f"clips of {batch.session} have no responses, but must have them to be mixed")
    height, width = batch.video.shape[-2:]
    if config.canvas is not None and (config.canvas[0] < height or config.canvas[1] < width):
        raise ValueError(f"canvas is {config.canvas}, but must hold the video's {height} x {width} pixels")
