"""What members add to each other: correlations, gain against their number, score against cost."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from ensembles.analysis import CostPoint, CurvePoint
from ensembles.blending import mean_of_subsets
from ensembles.clip_moments import PooledMoments, guarded_ratio

NUM_ORDERS = 20
"""Random orders in which members are added for the curve."""


def member_correlation(pooled: PooledMoments) -> Float64[np.ndarray, "k k"]:
    """Correlate the predictions of each two members, mean over the neurons that both of them vary for."""
    num_members = pooled.num_members
    correlation = np.eye(num_members)
    variance = pooled.covariance[np.arange(num_members), np.arange(num_members)]
    for first, second in combinations(range(num_members), 2):
        ratio = guarded_ratio(pooled.covariance[first, second], variance[first] * variance[second])
        varies = (variance[first] > 0) & (variance[second] > 0)
        mean = float(ratio[varies].mean()) if varies.any() else 0.0
        correlation[first, second] = correlation[second, first] = mean
    return correlation


def mean_off_diagonal(correlation: Float64[np.ndarray, "k k"]) -> float:
    """Return the mean correlation of two different members; 1 for a single one."""
    num_members = len(correlation)
    if num_members < 2:
        return 1.0
    return float((correlation.sum() - np.trace(correlation)) / (num_members * (num_members - 1)))


def gain_curve(pooled: PooledMoments, kept: Sequence[int], mean_correlation: float) -> tuple[CurvePoint, ...]:
    """Score means of more and more members, added in random orders, beside what equal members would give."""
    rng = np.random.default_rng(0)
    scores = np.stack([mean_of_subsets(pooled, rng.permutation(kept).tolist()) for _ in range(NUM_ORDERS)])
    single = np.mean([pooled.score(np.eye(pooled.num_members)[member]) for member in kept])
    return tuple(
        CurvePoint(
            num_members=count,
            score=float(single if count == 1 else scores[:, count - 1].mean()),
            low=float(np.quantile(scores[:, count - 1], 0.1)),
            high=float(np.quantile(scores[:, count - 1], 0.9)),
            predicted=float(single * math.sqrt(count / (1 + (count - 1) * mean_correlation))),
        )
        for count in range(1, len(kept) + 1)
    )


def cost_front(
    pooled: PooledMoments, members: Sequence[str], kept: Sequence[int], costs: Sequence[float]
) -> tuple[tuple[CostPoint, ...], tuple[CostPoint, ...]]:
    """Score singles, pairs, and means grown by what helps most, also for its cost; keep the unbeaten."""
    subsets = {(member,) for member in kept} | {tuple(sorted(pair)) for pair in combinations(kept, 2)}
    subsets |= set(_grown(pooled, kept, [1.0] * len(costs))) | set(_grown(pooled, kept, costs))
    points = [
        CostPoint(
            members=tuple(members[member] for member in subset),
            cost=float(sum(costs[member] for member in subset)),
            score=pooled.score(np.isin(np.arange(len(members)), subset) / len(subset)),
        )
        for subset in sorted(subsets)
    ]
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return tuple(front), tuple(point for point in points if point not in front)


def _grown(pooled: PooledMoments, kept: Sequence[int], costs: Sequence[float]) -> list[tuple[int, ...]]:
    """Add to the best member, one by one, whatever gains most per cost."""
    chosen: list[int] = []
    grown = []
    score = 0.0
    while len(chosen) < len(kept):
        best, best_score, best_gain = -1, 0.0, -math.inf
        for member in kept:
            if member in chosen:
                continue
            subset = [*chosen, member]
            found = pooled.score(np.isin(np.arange(pooled.num_members), subset) / len(subset))
            # Where nothing gains any more, what costs much must not look better for it.
            gain = (found - score) / costs[member] if found > score else (found - score) * costs[member]
            if gain > best_gain:
                best, best_score, best_gain = member, found, gain
        chosen.append(best)
        score = best_score
        grown.append(tuple(sorted(chosen)))
    return grown
