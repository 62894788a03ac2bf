"""Ways to weight the members of an ensemble: each a function of what may be seen, a line in ``BLENDS``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from ensembles.clip_moments import ClipMoments, PooledMoments, guarded_ratio
from ensembles.evidence import Evidence, Metric, Scales
from ensembles.simplex import best_on_simplex
from training.names import nearest

ROUNDS = 25
NUM_BAGS = 20
MAX_SUBSET = 4
RIDGES = (np.inf, 0.1, 0.03, 0.01, 0.003, 0.001)
"""From uniform to nearly free weights; 0.003 costs 0.07 % of the score where 6 of 31 members get nothing."""

MAX_FOLDS = 6
"""More clips than this are left out in so many groups when a ridge is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlendTask:
    """All that a blend may see.

    Attributes:
        moments: of the members' predictions and the responses.
        clips: numbers of the clips it may look at.
        groups: architecture of each member.
        sessions: names of all sessions.
    """

    moments: ClipMoments
    clips: tuple[int, ...]
    groups: tuple[str, ...]
    sessions: tuple[str, ...]

    @property
    def num_members(self) -> int:
        """Members of the pool."""
        return self.moments.num_members

    def pooled(self) -> PooledMoments:
        """Add up the clips."""
        return self.moments.pool(self.clips)


Weighting = Float64[np.ndarray, " k"]
Fit = Callable[[BlendTask], Mapping[str, Weighting]]
"""Returns weights for each session: of at least 0, sum 1; the same for all sessions where they are global."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """One way to weight members.

    Attributes:
        fit: finds the weights.
        summary: what it does, for reports.
        zscored: members are first scaled to the same std in each neuron, which needs no response.
        looks: whether it looks at responses at all; what does not needs no gate.
    """

    fit: Fit
    summary: str
    zscored: bool = False
    looks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blended:
    """Weights and what goes with them.

    Attributes:
        weights: of each session and member; the same for all sessions unless the blend is by mouse.
        scales: factors of each member's predictions by session and neuron; None for 1.
    """

    weights: Mapping[str, Weighting]
    scales: Scales | None


def fit_mean(task: BlendTask) -> dict[str, Weighting]:
    """Weight all members the same."""
    return _everywhere(task, np.full(task.num_members, 1 / task.num_members))


def fit_greedy(task: BlendTask) -> dict[str, Weighting]:
    """Add members one by one, with replacement, and keep the best prefix.

    Source:
        Caruana et al. 2004, ICML, ensemble selection; 25 rounds and the best prefix as in AutoGluon.
    """
    return _everywhere(task, greedy(task.pooled(), rounds=ROUNDS))


def fit_bagged(task: BlendTask) -> dict[str, Weighting]:
    """Average the greedy weights of bootstrap samples of clips."""
    rng = np.random.default_rng(0)
    total = np.zeros(task.num_members)
    for _ in range(NUM_BAGS):
        clips = rng.choice(np.array(task.clips), len(task.clips))
        total += greedy(task.moments.pool(clips.tolist()), rounds=ROUNDS)
    return _everywhere(task, total / NUM_BAGS)


def fit_exhaustive(task: BlendTask) -> dict[str, Weighting]:
    """Take the mean of the best subset of at most ``MAX_SUBSET`` members; all subsets are scored."""
    best, _ = best_subset(task.pooled(), max_members=MAX_SUBSET)
    weights = np.zeros(task.num_members)
    weights[list(best)] = 1 / len(best)
    return _everywhere(task, weights)


def fit_simplex(task: BlendTask) -> dict[str, Weighting]:
    """Maximize the exact score on the simplex, with a ridge to uniform chosen by leaving clips out."""
    return _everywhere(task, _ridged(task, np.eye(task.num_members)))


def fit_groups(task: BlendTask) -> dict[str, Weighting]:
    """The same over means of the members of each architecture; uniform is still uniform over members."""
    names = sorted(set(task.groups))
    shares = np.array([[float(group == name) for group in task.groups] for name in names])
    return _everywhere(task, _ridged(task, shares / shares.sum(axis=1, keepdims=True)))


def fit_by_mouse(task: BlendTask) -> dict[str, Weighting]:
    """Shrink weights of each session halfway to the global ones; both with the global ridge."""
    everyone = np.eye(task.num_members)
    ridge = _choose_ridge(task, everyone)
    together = _path(task.pooled(), everyone, [ridge])[0]
    result = {}
    for session in task.sessions:
        own = [clip for clip in task.clips if clip in task.moments.clips_of[session]]
        alone = _path(task.moments.pool(own, session=session), everyone, [ridge])[0] if own else together
        result[session] = (together + alone) / 2
    return result


BLENDS: dict[str, Blend] = {
    "mean": Blend(fit=fit_mean, summary="all members the same", looks=False),
    "zscored": Blend(
        fit=fit_mean,
        summary="members scaled to one std in each neuron, then the same",
        zscored=True,
        looks=False,
    ),
    "greedy": Blend(fit=fit_greedy, summary=f"greedy with replacement, {ROUNDS} rounds"),
    "bagged": Blend(fit=fit_bagged, summary=f"greedy on {NUM_BAGS} bootstrap samples of clips, averaged"),
    "simplex": Blend(fit=fit_simplex, summary="best on the simplex, ridge to uniform by left-out clips"),
    "groups": Blend(fit=fit_groups, summary="the same over the means of architectures"),
    "exhaustive": Blend(fit=fit_exhaustive, summary=f"best subset of at most {MAX_SUBSET} members"),
    "by_mouse": Blend(fit=fit_by_mouse, summary="simplex for each mouse, shrunk halfway to the global one"),
}


def find_blend(name: str) -> Blend:
    """Return a blend by its name.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    if name not in BLENDS:
        raise ValueError(f"blend is {name!r}{nearest(name, list(BLENDS))}")
    return BLENDS[name]


class Blender:
    """Fits one blend on any clips of one pool.

    Args:
        name: of the blend.
        evidence: of the members it weights.
        groups: architecture of each member; default all the same.
        metric: which correlation the weights shall be good at.
    """

    def __init__(
        self,
        name: str,
        evidence: Evidence,
        *,
        groups: Sequence[str] | None = None,
        metric: Metric = "single_trial",
    ) -> None:
        self.name = name
        self.blend = find_blend(name)
        self._evidence = evidence
        self._groups = tuple(groups or ["all"] * len(evidence.members))
        if len(self._groups) != len(evidence.members):
            raise ValueError(
                f"groups are {len(self._groups)}, but must be {len(evidence.members)} as members are"
            )
        self.scales = zscores(evidence) if self.blend.zscored else None
        self._moments = ClipMoments.load(evidence, metric=metric, scales=self.scales)

    def fit(self, clips: Sequence[int]) -> Blended:
        """Find the weights that are best by these clips alone."""
        task = BlendTask(
            moments=self._moments, clips=tuple(clips), groups=self._groups, sessions=self._evidence.sessions
        )
        return Blended(weights=self.blend.fit(task), scales=self.scales)


def zscores(evidence: Evidence) -> dict[str, Float32[np.ndarray, "k _"]]:
    """Return factors that give all members of each neuron the same std, the mean of their own.

    They are taken from predictions alone. A member that never changes in a neuron keeps its scale.
    """
    scales = {}
    for session in evidence.sessions:
        std = evidence.standard_deviations(session)
        varies = std > 0
        mean = std.sum(axis=0) / np.maximum(varies.sum(axis=0), 1)
        scales[session] = np.where(varies, mean / np.where(varies, std, 1.0), 1.0).astype(np.float32)
    return scales


def greedy(pooled: PooledMoments, *, rounds: int) -> Weighting:
    """Add the member that helps most, again and again; return the shares of the best prefix."""
    num_members = pooled.num_members
    diagonal = pooled.covariance[np.arange(num_members), np.arange(num_members)]
    along = np.zeros_like(pooled.with_response[0])
    variance = np.zeros_like(along)
    with_members = np.zeros_like(pooled.with_response)
    counts, best_counts, best = np.zeros(num_members), np.zeros(num_members), -np.inf
    for _ in range(rounds):
        scores = guarded_ratio(along + pooled.with_response, variance + 2 * with_members + diagonal).sum(
            axis=1
        )
        member = int(scores.argmax())
        variance = variance + 2 * with_members[member] + diagonal[member]
        along = along + pooled.with_response[member]
        with_members += pooled.covariance[member]
        counts[member] += 1
        if scores[member] > best:
            best, best_counts = float(scores[member]), counts.copy()
    best_counts /= best_counts.sum()
    return best_counts


def mean_of_subsets(pooled: PooledMoments, order: Sequence[int]) -> Float64[np.ndarray, " _"]:
    """Return the score of the mean of the first member, of the first two, and so on."""
    num_members = pooled.num_members
    diagonal = pooled.covariance[np.arange(num_members), np.arange(num_members)]
    along = np.zeros_like(pooled.with_response[0])
    variance = np.zeros_like(along)
    scores = []
    for place, member in enumerate(order):
        between = pooled.covariance[list(order[:place]), member].sum(axis=0)
        variance = variance + 2 * between + diagonal[member]
        along = along + pooled.with_response[member]
        scores.append(float(guarded_ratio(along, variance).sum(dtype=np.float64)) / pooled.num_neurons)
    return np.array(scores)


_Subset = tuple[
    tuple[int, ...],
    Float32[np.ndarray, " n"],
    Float32[np.ndarray, "later n"],
    Float32[np.ndarray, " n"],
]
"""Members, and of their sum: covariance with the response and with each later member, variance."""


def best_subset(pooled: PooledMoments, *, max_members: int) -> tuple[tuple[int, ...], int]:
    """Score the mean of every subset of at most so many members.

    Returns:
        The best subset, and how many were scored.
    """
    num_members = pooled.num_members
    diagonal = pooled.covariance[np.arange(num_members), np.arange(num_members)]
    nothing = np.zeros_like(pooled.with_response[0])
    best: tuple[float, tuple[int, ...]] = (-np.inf, ())
    num_scored = 0
    start = ((), nothing, np.zeros_like(pooled.with_response), nothing)
    subsets: list[_Subset] = [start]
    while subsets:
        chosen, along, with_members, variance = subsets.pop()
        first = num_members - len(with_members)
        along = along + pooled.with_response[first:]
        variance = variance + 2 * with_members + diagonal[first:]
        scores = guarded_ratio(along, variance).sum(axis=1)
        num_scored += len(scores)
        last = int(scores.argmax())
        if scores[last] > best[0]:
            best = (float(scores[last]), (*chosen, first + last))
        if len(chosen) + 1 < max_members:
            subsets += [
                (
                    (*chosen, member),
                    along[member - first],
                    with_members[member - first + 1 :] + pooled.covariance[member, member + 1 :],
                    variance[member - first],
                )
                for member in range(first, num_members - 1)
            ]
    return best[1], num_scored


def _everywhere(task: BlendTask, weights: Weighting) -> dict[str, Weighting]:
    return dict.fromkeys(task.sessions, weights)


def _ridged(task: BlendTask, shares: Float64[np.ndarray, "g k"]) -> Weighting:
    ridge = _choose_ridge(task, shares)
    weights: Weighting = _path(task.pooled(), shares, [ridge])[0]
    return weights


def _choose_ridge(task: BlendTask, shares: Float64[np.ndarray, "g k"]) -> float:
    """Return the ridge whose weights are best on clips that they were not fitted on; ties to the stronger."""
    if len(task.clips) < 2:
        return float(np.inf)
    num_folds = min(len(task.clips), MAX_FOLDS)
    weights = np.zeros((task.moments.num_clips, len(RIDGES), task.num_members))
    for fold in range(num_folds):
        held_out = task.clips[fold::num_folds]
        seen = [clip for clip in task.clips if clip not in held_out]
        weights[list(held_out)] = _path(task.moments.pool(seen), shares, RIDGES)
    scores = task.moments.held_out_scores(dict.fromkeys(task.sessions, weights), task.clips)
    return float(RIDGES[int(scores.argmax())])


def _path(
    pooled: PooledMoments, shares: Float64[np.ndarray, "g k"], ridges: Sequence[float]
) -> Float64[np.ndarray, "r k"]:
    """Fit for each ridge, from strong to weak, each from the one before."""
    num_members = shares.shape[1]
    sizes = (shares > 0).sum(axis=1)
    grouped = pooled if len(shares) == num_members else pooled.grouped(shares)
    uniform = sizes / num_members
    # K * sum((w - 1/K)^2) over members, in terms of the groups' shares.
    penalty = num_members / sizes
    start, path = uniform, []
    for ridge in ridges:
        start = best_on_simplex(grouped, ridge=ridge, uniform=uniform, penalty=penalty, start=start)
        path.append(start @ shares)
    return np.stack(path)
