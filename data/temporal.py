"""How model V1 cells filter over time: a fast and a slow kernel, which together tell directions apart."""

from dataclasses import dataclass
from math import factorial

import numpy as np
from jaxtyping import Float, Float32

_TAPS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalFilter:
    """The fast and the slow kernel, 15 frames of 1/30 s each.

    Attributes:
        tap_rate: units of the kernels' own time per frame. With 0.9 they answer most to changes of some 3 Hz,
            3 and 5 frames after the cause; twice the rate, twice as fast.
        rebound: weight of the negative lobe. With 1 a kernel sums to nothing, so what stays on the screen
            stops driving the cell; with 0 there is no negative lobe, and the cell answers as long as it sees.

    Source:
        Adelson & Bergen 1985, equation 1: ``(k t)^n exp(-k t) [1 / n! - (k t)^2 / (n + 2)!]``, n of 3 and 5;
        the weight of the second term as in Emerson, Bergen & Adelson 1992.
    """

    tap_rate: float = 0.9
    rebound: float = 1.0

    def kernels(self) -> Float[np.ndarray, "2 taps"]:
        """Return the fast and the slow kernel, of unit energy."""
        time = self.tap_rate * np.arange(_TAPS)
        kernels = np.stack(
            [
                time**n * np.exp(-time) * (1 / factorial(n) - self.rebound * time**2 / factorial(n + 2))
                for n in (3, 5)
            ]
        )
        normalized: Float[np.ndarray, "2 taps"] = kernels / np.linalg.norm(kernels, axis=1, keepdims=True)
        return normalized

    def matrices(self, num_frames: int) -> Float32[np.ndarray, "2 t t"]:
        """Return what convolves traces causally with both kernels, as one matrix product each."""
        lag = np.arange(num_frames)[None, :] - np.arange(num_frames)[:, None]
        inside = (lag >= 0) & (lag < _TAPS)
        kernels = self.kernels()[:, np.where(inside, lag, 0)]
        return np.where(inside[None], kernels, 0).astype(np.float32)
