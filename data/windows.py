"""Sliding windows over a trial, and stitching what a model predicts for them into one trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.clips import ClipBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One clip that a model is shown, and the part of it whose prediction is used.

    Attributes:
        start: first frame of the window within its trial.
        length: frames of the window.
        frame_step: trial frames between two frames of the window.
        kept: the window's own frames (0 is its first) whose predictions are used.
    """

    start: int
    length: int
    frame_step: int
    kept: range

    @property
    def frames(self) -> range:
        """All trial frames of the window."""
        return range(self.start, self.start + self.length * self.frame_step, self.frame_step)

    @property
    def kept_frames(self) -> range:
        """The trial frames whose predictions are used."""
        return self.frames[self.kept.start : self.kept.stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a trial is cut into windows for prediction.

    With a frame step of s the trial is s interleaved sequences, and each is tiled in the same way.
    The last window of a sequence ends on its last frame, so the tail is always covered.

    Attributes:
        length: frames of a window, or None for one window as long as the trial.
        lead: leading frames of a window whose predictions are not used: the model's warm-up, or context.
        hop: distance between windows, in frames of a window; ``length - lead`` does not overlap.
        frame_step: trial frames between two frames of a window.
        start: trial frame on which the first window starts.
        overlap: what a frame in several windows gets: the mean, or only the first window's prediction.
    """

    length: int | None = None
    lead: int = 0
    hop: int = 1
    frame_step: int = 1
    start: int = 0
    overlap: Literal["mean", "first"] = "mean"

    def __post_init__(self) -> None:
        """Refuse plans that would skip frames."""
        for name in ("lead", "start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")
        for name in ("hop", "frame_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        if self.length is not None and not 1 <= self.hop <= self.length - self.lead:
            raise ValueError(
                f"hop is {self.hop} for windows of {self.length} frames of which {self.lead} lead, "
                "but must satisfy 1 <= hop <= length - lead, or frames would be skipped"
            )
        if self.overlap not in ("mean", "first"):
            raise ValueError(f"overlap is {self.overlap!r}, but must be 'mean' or 'first'")

    def windows(self, num_frames: int) -> list[Window]:
        """Return the windows of a trial, by start.

        Args:
            num_frames: frames of the trial (or of its part that is to be predicted).

        Raises:
            ValueError: the trial is too short for a single window with a used frame.
        """
        found = []
        for phase in range(self.frame_step):
            origin = self.start + phase
            frames = len(range(origin, num_frames, self.frame_step))
            length = frames if self.length is None else self.length
            if length > self.lead and frames >= length:
                found += self._tile(origin, frames=frames, length=length)
        if not found:
            span = 1 + ((self.length or self.lead + 1) - 1) * self.frame_step
            raise ValueError(
                f"num_frames is {num_frames}, but must be at least {self.start + span} "
                f"(windows of {span} frames that start on frame {self.start})"
            )
        return sorted(found, key=lambda window: window.start)

    def _tile(self, origin: int, *, frames: int, length: int) -> list[Window]:
        windows, covered = [], 0
        for start in window_starts(frames, window=length, hop=self.hop):
            first = max(self.lead, covered - start) if self.overlap == "first" else self.lead
            windows.append(
                Window(
                    start=origin + start * self.frame_step,
                    length=length,
                    frame_step=self.frame_step,
                    kept=range(first, length),
                )
            )
            covered = start + length
        return windows


V1FM_WINDOWS = WindowPlan(length=30, lead=15, hop=15, start=35, overlap="first")
"""Dynamic-V1FM: the last 15 of 30 frames, side by side from frame 50; the last window fills the tail."""

DWISENEURO_WINDOWS = WindowPlan(length=16, frame_step=2)
"""DwiseNeuro: every window of 16 frames at half the frame rate, averaged where they overlap."""


def window_starts(num_frames: int, *, window: int, hop: int) -> list[int]:
    """Return the starts of windows that cover every frame; the last one ends on the last frame."""
    if not 1 <= hop <= window <= num_frames:
        raise ValueError(
            f"window is {window} and hop is {hop} for {num_frames} frames, "
            "but must satisfy 1 <= hop <= window <= frames"
        )
    starts = list(range(0, num_frames - window + 1, hop))
    if starts[-1] + window < num_frames:
        starts.append(num_frames - window)
    return starts


def cut_windows(trial: ClipBatch, windows: Sequence[Window]) -> ClipBatch:
    """Cut windows of equal length out of a whole trial, as one batch.

    Args:
        trial: a batch of one clip that holds every frame of the trial from frame 0 on.
        windows: windows of one plan, of one length.
    """
    if len(trial) != 1 or trial.frame_step != 1 or int(trial.start[0]) != 0:
        raise ValueError(
            f"trial has {len(trial)} clips at step {trial.frame_step} from frame {trial.start.tolist()}, "
            "but must be one whole trial"
        )
    if len({(window.length, window.frame_step) for window in windows}) != 1:
        raise ValueError("windows are empty or of several lengths, but must be of one plan and one length")
    last = max(window.frames[-1] for window in windows)
    if last >= trial.num_frames:
        raise ValueError(f"a window ends on frame {last}, but the trial has {trial.num_frames} frames")
    index = torch.tensor([list(window.frames) for window in windows], device=trial.video.device)
    return ClipBatch(
        session=trial.session,
        video=trial.video[0, :, index].transpose(0, 1),
        behavior=trial.behavior[0, :, index].transpose(0, 1),
        pupil=trial.pupil[0, :, index].transpose(0, 1),
        responses=None if trial.responses is None else trial.responses[0, :, index].transpose(0, 1),
        trial=trial.trial.expand(len(windows)),
        start=index[:, 0],
        frame_step=windows[0].frame_step,
    )


class Stitcher:
    """Adds up windows' predictions of one trial, and divides by the number of windows on each frame.

    Attributes:
        total: sum of the predictions so far, float32.
        weight: windows so far on each frame.
    """

    def __init__(self, num_neurons: int, num_frames: int, *, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(num_neurons, num_frames, device=device)
        self.weight = torch.zeros(num_frames, device=device)

    def add(self, windows: Sequence[Window], predicted: Float[Tensor, "b n t"]) -> None:
        """Add the predictions of a batch of windows.

        Args:
            windows: the windows, one for each row of ``predicted``.
            predicted: rates of the last t frames of each window.

        Raises:
            ValueError: the model does not predict a frame that the plan uses, or shapes disagree.
        """
        if len(windows) != len(predicted):
            raise ValueError(f"predicted has {len(predicted)} clips, but must have {len(windows)}")
        for window, rates in zip(windows, predicted, strict=True):
            warmup = window.length - rates.shape[1]
            if not 0 <= warmup <= window.kept.start:
                raise ValueError(
                    f"predicted has {rates.shape[1]} frames of a window of {window.length}, but must have "
                    f"{len(window.kept)} to {window.length}: raise the plan's lead to the model's warm-up"
                )
            where = window.kept_frames
            frames = slice(where.start, where.stop, where.step)
            self.total[:, frames] += rates[:, window.kept.start - warmup : window.kept.stop - warmup]
            self.weight[frames] += 1

    def result(self) -> tuple[Float[Tensor, "n t"], Bool[Tensor, " t"]]:
        """Return the stitched prediction, NaN where no window predicts, and the mask of predicted frames."""
        covered = self.weight > 0
        return self.total / self.weight.where(covered, torch.nan), covered
