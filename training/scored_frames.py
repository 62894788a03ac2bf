"""Which frames of a trial are scored, and what may not be scored at all."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# The benchmark drops the first 50 frames of every trial (arXiv:2407.09100), so predicting them earns nothing.
BURN_IN_FRAMES = 50
# From frame 300 on the official response scale has no statistics: its weights are about 100 times too large.
LAST_FRAME = 300


class ScoreError(ValueError):
    """Something that cannot be scored; the message names session, trial and neuron."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFrames:
    """The part of every trial that is scored.

    Attributes:
        burn_in_frames: leading frames of a trial that are not scored.
        last_frame: frames from here on are not scored; None scores to the end.
    """

    burn_in_frames: int = BURN_IN_FRAMES
    last_frame: int | None = LAST_FRAME

    def __post_init__(self) -> None:
        """Refuse a part that is empty for every trial."""
        if self.burn_in_frames < 0 or (
            self.last_frame is not None and self.last_frame <= self.burn_in_frames
        ):
            raise ValueError(
                f"burn_in_frames is {self.burn_in_frames} and last_frame is {self.last_frame}, "
                "but must satisfy 0 <= burn_in_frames < last_frame"
            )

    def responses(self, responses: Float[np.ndarray, "n t"], *, where: str) -> Float[np.ndarray, "n scored"]:
        """Return the scored frames of a trial's responses; NaN stays.

        Args:
            responses: all frames of the trial.
            where: session and trial, for errors.

        Raises:
            ScoreError: the trial is too short, or a response is infinite.
        """
        first, stop = self._bounds(responses.shape[1], where=where)
        scored = responses[:, first:stop]
        infinite = np.isinf(scored)
        if infinite.any():
            neuron, frame = np.argwhere(infinite)[0]
            raise ScoreError(
                f"{where}: the response of neuron {neuron} is infinite at frame {first + frame}, "
                "but must be a number or NaN"
            )
        return scored

    def predicted(
        self, predicted: Float[np.ndarray, "n t_out"], num_frames: int, *, where: str
    ) -> Float[np.ndarray, "n scored"]:
        """Return the scored frames of a trial's prediction.

        Args:
            predicted: for the last ``t_out`` frames of the trial.
            num_frames: frames of the trial.
            where: session and trial, for errors.

        Raises:
            ScoreError: the trial is too short, scored frames are missing, or a value is not finite.
        """
        first, stop = self._bounds(num_frames, where=where)
        missing = num_frames - predicted.shape[1]
        if not 0 <= missing <= first:
            raise ScoreError(
                f"{where} has predictions for the last {predicted.shape[1]} of {num_frames} frames, "
                f"but must have them for at least the last {num_frames - first} and at most all"
            )
        scored = predicted[:, first - missing : stop - missing]
        finite = np.isfinite(scored)
        if not finite.all():
            neuron, frame = np.argwhere(~finite)[0]
            raise ScoreError(
                f"{where}: the prediction of neuron {neuron} is {scored[neuron, frame]} "
                f"at frame {first + frame}, but must be finite"
            )
        return scored

    def _bounds(self, num_frames: int, *, where: str) -> tuple[int, int]:
        stop = num_frames if self.last_frame is None else min(num_frames, self.last_frame)
        if stop <= self.burn_in_frames:
            raise ScoreError(
                f"{where} has {num_frames} frames, but must have more than {self.burn_in_frames} to be scored"
            )
        return self.burn_in_frames, stop
