"""Recorded responses in the unit that predictions are stored in."""

import numpy as np
import torch
from jaxtyping import Float32

from data.array_files import StoreError
from data.moments import recompute_statistics
from data.normalization import response_precision
from data.recording import Recording, Trial
from training.scored_frames import ScoreError


class OfficialResponses:
    """Read responses of one recording per response std, the unit of the benchmark's server.

    Args:
        recording: with official statistics; without them they are computed from the train tier.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        try:
            std = recording.statistics("responses", "std")
        except StoreError:
            std = recompute_statistics(recording)("responses", "std").astype(np.float32)
        precision = response_precision(torch.from_numpy(std.T.astype(np.float64)))
        self._precision = precision.float()

    def read(self, trial: Trial, first: int, stop: int, neurons: slice) -> Float32[np.ndarray, "n t"]:
        """Return some frames of some neurons; NaN where there is no measurement.

        Raises:
            ScoreError: the responses are withheld, or infinite.
        """
        session = self._recording.session
        stored = self._recording.responses(trial)
        if stored is None:
            raise ScoreError(f"responses of trial {trial.index} of {session} are withheld, but must be known")
        frames = torch.arange(first, stop).clamp(max=len(self._precision) - 1)
        values = self._precision[frames, neurons].numpy() * stored[neurons, first:stop].T
        infinite = np.isinf(values)
        if infinite.any():
            frame, neuron = np.argwhere(infinite)[0]
            raise ScoreError(
                f"{session}: trial {trial.index}: the response of neuron {neurons.start + neuron} is "
                f"infinite at frame {first + frame}, but must be a number or NaN"
            )
        return np.ascontiguousarray(values.T)
