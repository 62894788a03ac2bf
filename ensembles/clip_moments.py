"""Moments of a sample of neurons in memory: what blends are fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from ensembles.evidence import Evidence, Metric, Scales
from ensembles.packed_moments import triangle_index, weigh
from training.moments import CONSTANT_TOLERANCE

MAX_NEURONS = 8_000
"""Neurons that weights are fitted on: every so many of each session. Scores are always of all neurons."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PooledMoments:
    """Moments of all neurons over some clips, in the units in which a correlation needs no others.

    Neurons whose response never changes are left out; they score 0 whatever the weights.

    Attributes:
        covariance: of the members' predictions, divided by their mean variance in each neuron.
        with_response: covariance with the response of unit variance, divided by the root of the same.
        num_neurons: all neurons, with those left out.
    """

    covariance: Float32[np.ndarray, "k k n"]
    with_response: Float32[np.ndarray, "k n"]
    num_neurons: int

    @property
    def num_members(self) -> int:
        """Members of the pool."""
        return len(self.with_response)

    def correlation(self, weights: Float64[np.ndarray, " k"]) -> Float32[np.ndarray, " n"]:
        """Correlate a weighted mean with the responses; 0 where it never changes."""
        return guarded_ratio(self.along(weights), self.variance(weights))

    def score(self, weights: Float64[np.ndarray, " k"]) -> float:
        """Return the mean correlation over all neurons."""
        return float(self.correlation(weights).sum(dtype=np.float64)) / self.num_neurons

    def along(self, weights: Float64[np.ndarray, " k"]) -> Float32[np.ndarray, " n"]:
        """Return the weighted mean's covariance with the response."""
        along: Float32[np.ndarray, " n"] = weights.astype(np.float32) @ self.with_response
        return along

    def with_members(self, weights: Float64[np.ndarray, " k"]) -> Float32[np.ndarray, "k n"]:
        """Return the weighted mean's covariance with each member."""
        num_members = self.num_members
        used = np.flatnonzero(weights)
        rows = self.covariance if 2 * len(used) > num_members else self.covariance[used]
        factors = weights if len(rows) == num_members else weights[used]
        flat = factors.astype(np.float32) @ rows.reshape(len(rows), -1)
        products: Float32[np.ndarray, "k n"] = flat.reshape(num_members, -1)
        return products

    def variance(self, weights: Float64[np.ndarray, " k"]) -> Float32[np.ndarray, " n"]:
        """Return the weighted mean's variance."""
        variance: Float32[np.ndarray, " n"] = weights.astype(np.float32) @ self.with_members(weights)
        return variance

    def grouped(self, shares: Float64[np.ndarray, "g k"]) -> "PooledMoments":
        """Return the moments of weighted means of the members, as if they were members."""
        shares = shares.astype(np.float32)
        half = np.tensordot(shares, self.covariance, axes=(1, 0))
        return PooledMoments(
            covariance=np.ascontiguousarray(np.moveaxis(np.tensordot(shares, half, axes=(1, 1)), 0, 1)),
            with_response=shares @ self.with_response,
            num_neurons=self.num_neurons,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipMoments:
    """Packed moments of a sample of neurons of all sessions, clip by clip, in memory.

    Attributes:
        packed: of each session, for the clips that it shows.
        clips_of: numbers of these clips.
        num_clips: clips of all sessions.
        num_members: members of the pool.
    """

    packed: Mapping[str, Float32[np.ndarray, "c values n"]]
    clips_of: Mapping[str, tuple[int, ...]]
    num_clips: int
    num_members: int

    @classmethod
    def load(
        cls,
        evidence: Evidence,
        *,
        metric: Metric = "single_trial",
        scales: Scales | None = None,
        max_neurons: int = MAX_NEURONS,
    ) -> "ClipMoments":
        """Take every so many neurons of each session.

        Args:
            evidence: of the pool.
            metric: which correlation weights shall be good at.
            scales: factors of the members' predictions.
            max_neurons: of all sessions together.
        """
        step = max(1, -(-sum(evidence.num_neurons.values()) // max_neurons))
        num_members = len(evidence.members)
        packed = {}
        for session in evidence.sessions:
            parts = []
            for neurons, moments in evidence.blocks(session, metric):
                first = -neurons.start % step
                kept = moments[:, :, first::step]
                if scales is not None:
                    factors = scales[session][:, neurons][:, first::step]
                    kept = kept * _packed_factors(num_members, factors)
                parts.append(kept.astype(np.float32))
            packed[session] = np.concatenate(parts, axis=2)
        return cls(
            packed=packed,
            clips_of=evidence.clips_of,
            num_clips=len(evidence.clips),
            num_members=num_members,
        )

    def pool(self, clips: Sequence[int], *, session: str | None = None) -> PooledMoments:
        """Add up clips, repetitions allowed.

        Args:
            clips: their numbers.
            session: only the neurons of this one.
        """
        times = np.bincount(np.asarray(clips, dtype=np.int64), minlength=self.num_clips)
        parts = []
        for name in self.packed if session is None else [session]:
            own = times[list(self.clips_of[name])]
            if own.any():
                parts.append(_pool(self.packed[name], own, self.num_members))
        assert parts, "no session shows the clips"
        return PooledMoments(
            covariance=np.concatenate([part.covariance for part in parts], axis=2),
            with_response=np.concatenate([part.with_response for part in parts], axis=1),
            num_neurons=sum(part.num_neurons for part in parts),
        )

    def held_out_scores(
        self, weights: Mapping[str, Float64[np.ndarray, "clips w k"]], clips: Sequence[int]
    ) -> Float64[np.ndarray, " w"]:
        """Score predictions that are weighted differently in each clip, over all frames of some clips.

        Args:
            weights: for each session, of each of all clips, several weightings and members.
            clips: those that are scored.
        """
        times = np.bincount(np.asarray(clips, dtype=np.int64), minlength=self.num_clips)
        total, num_neurons = 0.0, 0
        for session, packed in self.packed.items():
            own = np.array(self.clips_of[session])
            if times[own].any():
                kept = np.flatnonzero(times[own])
                moments = weigh(packed[kept], weights[session][own[kept]])
                total = total + moments.correlation(times[own[kept]])[0].sum(axis=1)
                num_neurons += packed.shape[2]
        scores: Float64[np.ndarray, " w"] = np.asarray(total / num_neurons)
        return scores


def _packed_factors(num_members: int, scales: Float[np.ndarray, "k n"]) -> Float64[np.ndarray, "values n"]:
    factors = np.concatenate([np.ones((1, scales.shape[1])), scales.astype(np.float64)])
    rows, columns = np.triu_indices(num_members + 1)
    return np.concatenate([np.ones((1, scales.shape[1])), factors, factors[rows] * factors[columns]])


def _pool(
    packed: Float32[np.ndarray, "c values n"], times: Int[np.ndarray, " c"], num_members: int
) -> PooledMoments:
    kept = np.flatnonzero(times)
    count = packed[kept, 0].astype(np.float64) * times[kept, None]
    total = np.maximum(count.sum(axis=0), 1.0)
    first = 2 + num_members
    means = packed[kept, 1:first].astype(np.float64)
    mean = np.einsum("cn,ctn->tn", count / total, means)
    above = ((means - mean) * np.sqrt(count)[:, None]).astype(np.float32)
    within = np.einsum("c,cvn->vn", times[kept].astype(np.float32), packed[kept, first:])
    rows, columns = np.triu_indices(num_members + 1)
    for of_clip in above:
        within += of_clip[rows] * of_clip[columns]
    index = triangle_index(num_members) - first
    response = within[index[0, 0]]
    varies = response > total * (CONSTANT_TOLERANCE * mean[0]) ** 2
    within, response = within[:, varies], response[varies]
    scale = np.maximum(within[np.diagonal(index)[1:]].mean(axis=0), np.finfo(np.float32).tiny)
    return PooledMoments(
        covariance=within[index[1:, 1:]] / scale,
        with_response=within[index[0, 1:]] / np.sqrt(scale * response),
        num_neurons=packed.shape[2],
    )


def guarded_ratio(
    along: Float32[np.ndarray, "... n"], variance: Float32[np.ndarray, "... n"]
) -> Float32[np.ndarray, "... n"]:
    """Return ``along / sqrt(variance)``; 0 where rounding is all there is of the variance."""
    varies = variance > CONSTANT_TOLERANCE**2
    std = np.sqrt(variance, where=varies, out=np.ones_like(variance))
    ratio: Float32[np.ndarray, "... n"] = np.divide(along, std, where=varies, out=np.zeros_like(along))
    return ratio
