"""Second moments of a neuron's response and all members' predictions, packed, added and weighted.

For each neuron and clip, ``num_values(K)`` numbers are kept about the traces ``[y, p1 .. pK]``: the number
of frames, the K + 1 means, and the upper triangle of the sums of products of deviations from these means. It
is the Gram matrix of ``[1, y, p1 .. pK]``, centered: clips with any means add up without losing digits, and
the moments of any weighted mean of the members follow without their predictions. The last axis is neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from training.moments import CONSTANT_TOLERANCE


def num_values(num_members: int) -> int:
    """Return how many numbers are kept of each neuron and clip."""
    num_traces = num_members + 1
    return 1 + num_traces + num_traces * (num_traces + 1) // 2


@lru_cache(maxsize=16)
def triangle_index(num_members: int) -> Int[np.ndarray, "traces traces"]:
    """Return the row of the packed numbers that holds each product; trace 0 is the response."""
    num_traces = num_members + 1
    index = np.zeros((num_traces, num_traces), dtype=np.int64)
    rows, columns = np.triu_indices(num_traces)
    index[rows, columns] = 1 + num_traces + np.arange(len(rows))
    index[columns, rows] = index[rows, columns]
    return index


class MomentSum:
    """Add the moments of blocks of frames of the same neurons, exactly in float64."""

    def __init__(self) -> None:
        self._counts: list[Float64[Tensor, " n"]] = []
        self._means: list[Float64[Tensor, "n traces"]] = []
        self._scatter: Float64[Tensor, "n traces traces"] | None = None

    def add(
        self,
        count: Float64[Tensor, " n"],
        mean: Float64[Tensor, "n traces"],
        scatter: Float64[Tensor, "n traces traces"],
    ) -> None:
        """Take in one block: frames, means, and sums of products of deviations from them."""
        self._counts.append(count)
        self._means.append(mean)
        self._scatter = scatter.clone() if self._scatter is None else self._scatter.add_(scatter)

    def packed(self) -> Float64[np.ndarray, "values n"]:
        """Return the packed moments of everything added."""
        assert self._scatter is not None
        counts, means = torch.stack(self._counts), torch.stack(self._means)
        total = counts.sum(dim=0)
        mean = (counts[..., None] * means).sum(dim=0) / total.clamp(min=1.0)[:, None]
        between = ((means - mean) * counts[..., None].sqrt()).permute(1, 2, 0)
        scatter = torch.baddbmm(self._scatter, between, between.mT)
        rows, columns = np.triu_indices(mean.shape[1])
        packed: np.ndarray = torch.cat([total[None], mean.T, scatter[:, rows, columns].T]).numpy()
        return packed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedMoments:
    """Moments of weighted means of the members with the response, clip by clip.

    Attributes:
        count: valid frames.
        mean_response: of the response.
        mean: of each weighting's prediction.
        response_scatter: squared deviations of the response.
        scatter: squared deviations of each weighting's prediction.
        product: products of the deviations of both.
    """

    count: Float64[np.ndarray, "c n"]
    mean_response: Float64[np.ndarray, "c n"]
    mean: Float64[np.ndarray, "c w n"]
    response_scatter: Float64[np.ndarray, "c n"]
    scatter: Float64[np.ndarray, "c w n"]
    product: Float64[np.ndarray, "c w n"]

    def correlation(
        self, times: Int[np.ndarray, " c"]
    ) -> tuple[Float64[np.ndarray, "w n"], Bool[np.ndarray, "w n"]]:
        """Correlate over clips, each taken so many times.

        Returns:
            Pearson's r, 0 for a constant neuron; and which neurons are constant (or have no valid frame).
        """
        kept = np.flatnonzero(times)
        count = self.count[kept] * times[kept, None]
        total = np.maximum(count.sum(axis=0), 1.0)
        share = count / total
        repeated = times[kept].astype(np.float64)
        mean_response = (share * self.mean_response[kept]).sum(axis=0)
        mean = np.einsum("cn,cwn->wn", share, self.mean[kept])
        above_response = self.mean_response[kept] - mean_response
        above = self.mean[kept] - mean
        response_scatter = repeated @ self.response_scatter[kept] + (count * above_response**2).sum(axis=0)
        scatter = np.einsum("c,cwn->wn", repeated, self.scatter[kept])
        scatter += np.einsum("cn,cwn,cwn->wn", count, above, above)
        product = np.einsum("c,cwn->wn", repeated, self.product[kept])
        product += np.einsum("cn,cn,cwn->wn", count, above_response, above)
        constant = scatter <= total * (CONSTANT_TOLERANCE * mean) ** 2
        constant |= response_scatter <= total * (CONSTANT_TOLERANCE * mean_response) ** 2
        norm = np.sqrt(np.maximum(scatter, 0.0)) * np.sqrt(response_scatter)
        correlation = np.divide(product, norm, out=np.zeros_like(norm), where=~constant)
        return np.clip(correlation, -1.0, 1.0), constant


def weigh(
    packed: Float[np.ndarray, "c values n"],
    weights: Float64[np.ndarray, "c w k"],
    *,
    scales: Float[np.ndarray, "k n"] | None = None,
) -> WeightedMoments:
    """Return the moments of weighted means of the members, without touching a prediction.

    Args:
        packed: of each clip.
        weights: of each clip, weighting and member; they may differ from clip to clip.
        scales: factors of each member's predictions.
    """
    num_members = weights.shape[2]
    index = triangle_index(num_members)
    means, scatters, products = [], [], []
    for clip, of_clip in zip(packed, weights, strict=True):
        factor = 1.0 if scales is None else scales.astype(np.float64)
        means.append(of_clip @ (clip[2 : 2 + num_members] * factor))
        products.append(of_clip @ (clip[index[0, 1:]] * factor))
        scatters.append(_quadratic(clip, of_clip, index[1:, 1:], scales))
    return WeightedMoments(
        count=packed[:, 0].astype(np.float64),
        mean_response=packed[:, 1].astype(np.float64),
        mean=np.stack(means),
        response_scatter=packed[:, index[0, 0]].astype(np.float64),
        scatter=np.stack(scatters),
        product=np.stack(products),
    )


def _quadratic(
    clip: Float[np.ndarray, "values n"],
    weights: Float64[np.ndarray, "w k"],
    index: Int[np.ndarray, "k k"],
    scales: Float[np.ndarray, "k n"] | None,
) -> Float64[np.ndarray, "w n"]:
    """Return ``w' S w`` of each weighting and neuron."""
    result = np.zeros((len(weights), clip.shape[1]))
    for row in np.flatnonzero(weights.any(axis=0)):
        of_row = index[row]
        products = clip[of_row] if scales is None else clip[of_row] * scales * scales[row]
        result += weights[:, row, None] * (weights @ products)
    return result


def keep_members(num_members: int, kept: Sequence[int]) -> Int[np.ndarray, " values"]:
    """Return the rows of the packed numbers that a pool of some of the members would have."""
    traces = np.array([0, *(member + 1 for member in kept)])
    index = triangle_index(num_members)[np.ix_(traces, traces)]
    return np.concatenate([[0], 1 + traces, index[np.triu_indices(len(traces))]])
