"""Means and second moments of two traces per neuron, added block by block and exact in float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# A trace whose spread is below the rounding of float32 at its mean is constant: a dead unit's output differs
# from frame to frame only by the order in which a library adds.
CONSTANT_TOLERANCE = 2 * float(np.finfo(np.float32).eps)

# Neurons handled at a time: keeps the float64 copies of a block in the processor's cache.
_CHUNK = 256


@dataclass(slots=True, kw_only=True, eq=False)
class CoMoments:
    """Second moments about the mean of pairs of traces, one pair per neuron.

    Blocks are centered on their own mean before anything is squared and merged with the pairwise update, so a
    mean that is large against the spread, a drift or a step costs no digits.

    Attributes:
        count: valid frames.
        mean: of the first and the second trace.
        scatter: sums of squared deviations of the first and of the second trace, sum of their products.

    Source:
        Chan, Golub & LeVeque 1983, The American Statistician 37(3), pairwise updating.
    """

    count: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, "2 n"]
    scatter: Float[np.ndarray, "3 n"]

    @classmethod
    def empty(cls, num_neurons: int) -> "CoMoments":
        """Start with no frames."""
        return cls(
            count=np.zeros(num_neurons), mean=np.zeros((2, num_neurons)), scatter=np.zeros((3, num_neurons))
        )

    @classmethod
    def of(
        cls,
        first: Float[np.ndarray, "n t"],
        second: Float[np.ndarray, "n t"],
        *,
        valid: Bool[np.ndarray, "n t"] | None = None,
    ) -> "CoMoments":
        """Summarize one block.

        Args:
            first: finite where valid.
            second: finite where valid.
            valid: frames that count, the same for both traces; None for all.
        """
        result = cls.empty(len(first))
        for rows in _chunks(len(first)):
            pair = np.stack([first[rows], second[rows]]).astype(np.float64, copy=False)
            if valid is None:
                count = np.full(pair.shape[1], float(pair.shape[2]))
            else:
                pair = np.where(valid[rows], pair, 0.0)
                count = valid[rows].sum(axis=1).astype(np.float64)
            mean = pair.sum(axis=2) / np.maximum(count, 1.0)
            pair -= mean[..., None]
            if valid is not None:
                pair *= valid[rows]
            result.count[rows] = count
            result.mean[:, rows] = mean
            result.scatter[:2, rows] = np.einsum("ant,ant->an", pair, pair)
            result.scatter[2, rows] = np.einsum("nt,nt->n", pair[0], pair[1])
        return result

    def copy(self) -> "CoMoments":
        """Return an independent copy."""
        return CoMoments(count=self.count.copy(), mean=self.mean.copy(), scatter=self.scatter.copy())

    def add(self, other: "CoMoments") -> None:
        """Take in the frames of another block or of another sum."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1.0)
        distance = other.mean - self.mean
        weight = self.count * share
        self.scatter += other.scatter
        self.scatter[:2] += weight * distance**2
        self.scatter[2] += weight * distance[0] * distance[1]
        self.mean += distance * share
        self.count = total

    def variance(self) -> Float[np.ndarray, "2 n"]:
        """Return the variance of the two traces over frames (divisor: number of frames)."""
        variance: Float[np.ndarray, "2 n"] = self.scatter[:2] / np.maximum(self.count, 1.0)
        return variance

    def covariance(self) -> Float[np.ndarray, " n"]:
        """Return the covariance over frames (divisor: number of frames)."""
        covariance: Float[np.ndarray, " n"] = self.scatter[2] / np.maximum(self.count, 1.0)
        return covariance

    def constant_traces(self) -> Bool[np.ndarray, "2 n"]:
        """Tell which traces never change (or have no valid frame), to float32 precision."""
        flat: Bool[np.ndarray, "2 n"] = self.variance() <= (CONSTANT_TOLERANCE * np.abs(self.mean)) ** 2
        return flat

    def is_constant(self) -> Bool[np.ndarray, " n"]:
        """Tell for which neurons one of the two traces is constant."""
        first, second = self.constant_traces()
        flat: Bool[np.ndarray, " n"] = np.logical_or(first, second)
        return flat

    def correlation(self) -> Float[np.ndarray, " n"]:
        """Return Pearson's r per neuron; 0 where a trace is constant."""
        constant = self.is_constant()
        norm = np.sqrt(self.scatter[0]) * np.sqrt(self.scatter[1])
        ratio = np.divide(self.scatter[2], norm, out=np.zeros_like(norm), where=~constant)
        correlation: Float[np.ndarray, " n"] = np.clip(ratio, -1.0, 1.0)
        return correlation


class RepeatSum:
    """Sums over the repeats of one video, frame by frame.

    Attributes:
        num_repeats: repeats taken in.
    """

    def __init__(self) -> None:
        self.num_repeats = 0
        self._predicted: Float[np.ndarray, "n t"] = np.empty((0, 0))
        self._responses: Float[np.ndarray, "n t"] = np.empty((0, 0))
        self._counts: Int[np.ndarray, "n t"] | None = None

    def add(
        self,
        predicted: Float[np.ndarray, "n t"],
        responses: Float[np.ndarray, "n t"],
        valid: Bool[np.ndarray, "n t"] | None,
    ) -> None:
        """Take in one repeat; all of them are cut to the frames common to all.

        Args:
            predicted: finite.
            responses: NaN allowed where not valid.
            valid: frames that count; None for all.
        """
        if valid is not None:
            predicted, responses = np.where(valid, predicted, 0.0), np.where(valid, responses, 0.0)
        if self.num_repeats == 0:
            self._predicted, self._responses = predicted.astype(np.float64), responses.astype(np.float64)
        else:
            # Repeats may differ by a frame: the movie was resampled at measured flip times.
            common = min(self._predicted.shape[1], predicted.shape[1])
            self._cut(common)
            self._predicted += predicted[:, :common]
            self._responses += responses[:, :common]
        self._count(valid)
        self.num_repeats += 1

    def moments(self) -> CoMoments:
        """Summarize the means over repeats."""
        if self._counts is None:
            return CoMoments.of(self._predicted / self.num_repeats, self._responses / self.num_repeats)
        counts = np.maximum(self._counts, 1)
        return CoMoments.of(self._predicted / counts, self._responses / counts, valid=self._counts > 0)

    def _count(self, valid: Bool[np.ndarray, "n t"] | None) -> None:
        if valid is None and self._counts is None:
            return
        if self._counts is None:
            self._counts = np.full(self._predicted.shape, self.num_repeats, dtype=np.int32)
        self._counts += 1 if valid is None else valid[:, : self._counts.shape[1]]

    def _cut(self, num_frames: int) -> None:
        if num_frames < self._predicted.shape[1]:
            self._predicted = self._predicted[:, :num_frames].copy()
            self._responses = self._responses[:, :num_frames].copy()
            self._counts = None if self._counts is None else self._counts[:, :num_frames].copy()


def _chunks(num_neurons: int) -> Iterator[slice]:
    for start in range(0, num_neurons, _CHUNK):
        yield slice(start, min(start + _CHUNK, num_neurons))
