"""Weights that are best on some clips: the exact score on the simplex, with a ridge to uniform weights."""

import numpy as np
from jaxtyping import Bool, Float, Float64

from ensembles.clip_moments import PooledMoments

_MAX_STEPS = 30
# Of the score of uniform weights: smaller gains are rounding.
_TOLERANCE = 1e-8


def best_on_simplex(
    pooled: PooledMoments,
    *,
    ridge: float,
    uniform: Float64[np.ndarray, " k"] | None = None,
    penalty: Float64[np.ndarray, " k"] | None = None,
    start: Float64[np.ndarray, " k"] | None = None,
) -> Float64[np.ndarray, " k"]:
    """Maximize ``score(w) / score(uniform) - ridge * sum(penalty * (w - uniform)^2)``, w >= 0, sum(w) = 1.

    Newton steps on a quadratic model of the exact score, each solved on the simplex, with halving.

    Args:
        pooled: moments of the clips.
        ridge: how strongly uniform weights attract; infinity returns them.
        uniform: what they are; default all the same.
        penalty: of each weight; default the number of members, so that the sum is K / K_effective - 1.
        start: first guess.
    """
    num_members = pooled.num_members
    uniform = np.full(num_members, 1 / num_members) if uniform is None else uniform
    penalty = np.full(num_members, float(num_members)) if penalty is None else penalty
    scale = abs(pooled.score(uniform))
    if np.isinf(ridge) or num_members == 1 or scale == 0:
        return uniform

    def value(weights: Float64[np.ndarray, " k"]) -> float:
        return pooled.score(weights) / scale - ridge * float(penalty @ (weights - uniform) ** 2)

    weights = uniform if start is None else start
    current = value(weights)
    for _ in range(_MAX_STEPS):
        gradient, hessian = _derivatives(pooled, weights)
        gradient = gradient / scale - 2 * ridge * penalty * (weights - uniform)
        curvature = _positive(-hessian / scale) + np.diag(2 * ridge * penalty)
        target = _quadratic_on_simplex(curvature, gradient + curvature @ weights, weights)
        step = 1.0
        while step > 1e-3:
            trial = weights + step * (target - weights)
            found = value(trial)
            if found > current:
                break
            step /= 2
        else:
            break
        gained, weights, current = found - current, trial, found
        if gained < _TOLERANCE:
            break
    weights = np.where(weights < 1e-6, 0.0, weights)
    weights /= weights.sum()
    return weights


def _derivatives(
    pooled: PooledMoments, weights: Float64[np.ndarray, " k"]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    """Return gradient and Hessian of the score ``mean(a / sqrt(b))``, a = c'w, b = w'Cw."""
    with_members = pooled.with_members(weights)
    along = pooled.along(weights)
    variance = np.maximum(weights.astype(np.float32) @ with_members, np.finfo(np.float32).eps ** 2)
    inverse = 1 / np.sqrt(variance)
    cubed = inverse / variance
    ratio = along * cubed
    gradient = pooled.with_response @ inverse - with_members @ ratio
    num_members = pooled.num_members
    cross = (pooled.with_response * cubed) @ with_members.T
    spread = (with_members * (3 * ratio / variance)) @ with_members.T
    shape = (pooled.covariance.reshape(num_members**2, -1) @ ratio).reshape(num_members, num_members)
    hessian = spread - shape - cross - cross.T
    return gradient.astype(np.float64) / pooled.num_neurons, hessian.astype(np.float64) / pooled.num_neurons


def _positive(matrix: Float[np.ndarray, "k k"]) -> Float64[np.ndarray, "k k"]:
    """Return the nearest matrix whose eigenvalues are well above 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = np.maximum(values, 1e-6 * max(float(values[-1]), 1e-12))
    positive: Float64[np.ndarray, "k k"] = (vectors * kept) @ vectors.T
    return positive


def _quadratic_on_simplex(
    matrix: Float64[np.ndarray, "k k"], linear: Float64[np.ndarray, " k"], start: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """Minimize ``x'Mx/2 - l'x`` on the simplex, M positive definite, by the primal active-set method.

    Source:
        Nocedal & Wright 2006, Numerical Optimization, algorithm 16.3.
    """
    point, free = start.copy(), start > 0
    for _ in range(20 * len(point)):
        target = _on_face(matrix, linear, free)
        outside = free & (target < 0)
        if outside.any():
            share = point[outside] / (point[outside] - target[outside])
            point = point + float(share.min()) * (target - point)
            first = np.flatnonzero(outside)[int(share.argmin())]
            point[first], free[first] = 0.0, False
            continue
        point = target
        gradient = matrix @ point - linear
        # On the face all gradients are the same; a smaller one outside of it would gain.
        slack = np.where(free, 0.0, gradient - gradient[free].mean())
        entering = int(slack.argmin())
        if slack[entering] >= -1e-12 * max(1.0, float(np.abs(gradient).max())):
            break
        free[entering] = True
    return point


def _on_face(
    matrix: Float64[np.ndarray, "k k"], linear: Float64[np.ndarray, " k"], free: Bool[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """Minimize over points whose free entries sum to 1 and whose others are 0, whatever their signs."""
    rows = np.flatnonzero(free)
    solved = np.linalg.solve(matrix[np.ix_(rows, rows)], np.stack([linear[rows], np.ones(len(rows))], axis=1))
    level = (solved[:, 0].sum() - 1) / solved[:, 1].sum()
    point = np.zeros(len(free))
    point[rows] = solved[:, 0] - level * solved[:, 1]
    return point
