"""Statistics over the trials of the train tier, for each frame, computed in one pass."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from data.recording import Recording, Tier

_MAX_FRAMES = 300
_FIELDS = {"videos": "video", "responses": "responses", "behavior": "behavior", "pupil_center": "pupil"}


def recompute_statistics(recording: Recording) -> Callable[[str, str], Float64[np.ndarray, "..."]]:
    """Compute what ``Recording.statistics`` tells from the train tier itself, up to frame 300.

    The statistics of a frame are over the trials that have it.

    Returns:
        A function of variable and name (min, max, mean or std) that returns an array with frames last.

    Raises:
        ValueError: the train tier is empty or withheld.

    Source:
        ViV1T (released code): statistics per frame over the train tier, trials cut to 300 frames.
    """
    trials = [trial for trial in recording.trials if trial.tier == Tier.TRAIN and trial.has_responses]
    if not trials:
        raise ValueError(f"{recording.session} has no train trials with responses to compute statistics from")
    frames = [recording.frames(trial, 0, min(trial.num_frames, _MAX_FRAMES)) for trial in trials]
    moments = {
        variable: _FrameMoments([getattr(of_trial, name) for of_trial in frames])
        for variable, name in _FIELDS.items()
    }
    return lambda variable, name: moments[variable].statistic(name)


class _FrameMoments:
    """Mean, squared deviations and extremes of each frame and element over trials (Welford's rule)."""

    def __init__(self, arrays: list[Shaped[np.ndarray, "_ ..."]]) -> None:
        shape = (max(len(array) for array in arrays), *arrays[0].shape[1:])
        self.count = torch.zeros(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64)
        self.mean, self.squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.min = torch.full(shape, torch.inf, dtype=torch.float64)
        self.max = torch.full(shape, -torch.inf, dtype=torch.float64)
        for array in arrays:
            self._add(array)

    def _add(self, array: Shaped[np.ndarray, "_ ..."]) -> None:
        # torch, because numpy is slow at half precision; a copy, because the map is read-only.
        values = torch.from_numpy(array.copy()).double()
        known = slice(len(values))
        self.count[known] += 1
        above = values - self.mean[known]
        self.mean[known] += above / self.count[known]
        self.squares[known] += above * (values - self.mean[known])
        self.min[known] = self.min[known].minimum(values)
        self.max[known] = self.max[known].maximum(values)

    def statistic(self, name: str) -> Float64[np.ndarray, "..."]:
        """Return one statistic, with frames last."""
        table = (self.squares / self.count).sqrt() if name == "std" else getattr(self, name)
        result: np.ndarray = table.movedim(0, -1).numpy()
        return result
