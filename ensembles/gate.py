"""Which weights are used: the mean, unless others are better on clips that they did not see."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ensembles.blending import Blended, Blender, find_blend
from ensembles.evidence import Evidence, Metric, Scales
from ensembles.intervals import Interval, jackknife, leave_one_out_sets

logger = logging.getLogger(__name__)

CANDIDATE = "simplex"
"""The blend that the gate tries when none is asked for."""

BROKEN_BELOW = 0.8
"""Of the median score of the members: what is below is dropped."""

MIN_CLIPS = 3
"""With fewer clips nothing can be told about clips that were not seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenMember:
    """A member that was dropped, and why."""

    member: str
    score: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """What a blend gains over the mean on clips that its weights did not see.

    Attributes:
        candidate: name of the blend.
        mean: score of the mean of the members that are not broken.
        held_out: score of predictions that are blended, in each clip, with weights fitted on the others.
        in_sample: score of weights fitted on all clips, on the same clips: optimistic.
        gain: ``held_out - mean`` with the jackknife over clips.
        is_open: whether the lower bound of the gain is above 0.
    """

    candidate: str
    mean: float
    held_out: float
    in_sample: float
    gain: Interval
    is_open: bool

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        bound = f"one-sided 95 % bound {self.gain.lower_bound:+.5f} over {self.gain.num_clips} clips"
        if self.gain.num_clips < MIN_CLIPS:
            return f"{self.candidate} cannot be judged with {self.gain.num_clips} clips; at least {MIN_CLIPS}"
        verdict = "is used" if self.is_open else "is not used"
        return (
            f"{self.candidate} gains {self.gain.value:+.5f} on clips it did not see ({bound}) and {verdict}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The weights of an ensemble, and how they came about.

    Attributes:
        members: of the pool, in the order of weights.
        weights: of each member, sum 1, 0 for those that are not used; the mean over sessions if by mouse.
        by_session: weights of each session; the same everywhere unless the blend is by mouse.
        scales: factors of each member's predictions by session and neuron; None for 1.
        blend: name of the blend that is used.
        forced: whether it was asked for, so that the gate had no say.
        gate: what was found about a blend that looks at responses; None if none was tried.
        broken: members that were dropped.
        single_scores: of each member alone, on the clips that chose.
        held_out_weights: of each session, clip and member: weights that did not see the clip.
        metric: what was maximized.
        chosen_on: tier of the clips that chose.
        evidence: fingerprint of the evidence that chose.
    """

    members: tuple[str, ...]
    weights: Float64[np.ndarray, " k"]
    by_session: Mapping[str, Float64[np.ndarray, " k"]]
    scales: Scales | None
    blend: str
    forced: bool
    gate: Gate | None
    broken: tuple[BrokenMember, ...]
    single_scores: Float64[np.ndarray, " k"]
    held_out_weights: Mapping[str, Float64[np.ndarray, "clips k"]]
    metric: Metric
    chosen_on: str
    evidence: str

    @property
    def used(self) -> tuple[str, ...]:
        """Members with a weight, in the order of the pool."""
        return tuple(name for name, weight in zip(self.members, self.weights, strict=True) if weight > 0)

    @property
    def kept(self) -> tuple[str, ...]:
        """Members that are not broken."""
        dropped = {broken.member for broken in self.broken}
        return tuple(name for name in self.members if name not in dropped)


def choose(
    evidence: Evidence,
    *,
    blend: str | None = None,
    groups: Mapping[str, str] | None = None,
    metric: Metric = "single_trial",
) -> Choice:
    """Choose the weights of an ensemble.

    Args:
        evidence: of the pool, on clips that may choose.
        blend: force this one; None lets ``CANDIDATE`` try to beat the mean.
        groups: architecture of each member, for blends that need it.
        metric: which correlation the weights shall be good at.

    Raises:
        ValueError: an unknown blend, or members without a group.
    """
    name = CANDIDATE if blend is None else blend
    known = find_blend(name)
    members = evidence.members
    if groups is not None and not set(members) <= set(groups):
        raise ValueError(f"groups name no architecture for {', '.join(sorted(set(members) - set(groups)))}")
    num_clips = len(evidence.clips)
    singles = evidence.score_sets(
        list(np.eye(len(members))), np.ones((1, num_clips), np.int64), metric=metric
    ).pooled[0]
    broken = _broken(members, singles)
    dropped = {each.member for each in broken}
    pool = evidence.only([member for member in members if member not in dropped])
    of_groups = [groups[member] for member in pool.members] if groups is not None else None
    blender = Blender(name, pool, groups=of_groups, metric=metric)
    fitted = blender.fit(range(num_clips))
    mean = Blender("mean", pool).fit(range(num_clips)) if name != "mean" else fitted
    gate, held_out = None, _repeated(fitted, num_clips)
    if known.looks:
        gate, held_out = _try(blender, pool, fitted, metric=metric)
        logger.info("%s", gate.words)
    used, blended = (name, fitted) if blend is not None or gate is None or gate.is_open else ("mean", mean)
    if used == "mean":
        held_out = _repeated(mean, num_clips)
    places = [members.index(member) for member in pool.members]
    by_session = {
        session: _embed(weights, places, len(members)) for session, weights in blended.weights.items()
    }
    return Choice(
        members=members,
        weights=np.mean(list(by_session.values()), axis=0),
        by_session=by_session,
        scales=_embed_scales(blended.scales, places, len(members)),
        blend=used,
        forced=blend is not None,
        gate=gate,
        broken=broken,
        single_scores=singles,
        held_out_weights={s: _embed(weights, places, len(members)) for s, weights in held_out.items()},
        metric=metric,
        chosen_on=evidence.tier,
        evidence=evidence.fingerprint,
    )


def _broken(members: Sequence[str], scores: Float64[np.ndarray, " k"]) -> tuple[BrokenMember, ...]:
    median = float(np.median(scores))
    broken = tuple(
        BrokenMember(member=member, score=float(score), median=median)
        for member, score in zip(members, scores, strict=True)
        if median > 0 and score < BROKEN_BELOW * median
    )
    for each in broken:
        logger.warning(
            "%s scores %.4f, below %.1f of the median %.4f, and is dropped",
            each.member, each.score, BROKEN_BELOW, each.median,
        )  # fmt: skip
    return broken


def _try(
    blender: Blender, pool: Evidence, fitted: Blended, *, metric: Metric
) -> tuple[Gate, dict[str, Float64[np.ndarray, "clips k"]]]:
    """Fit without each clip in turn, and score that clip's predictions with those weights, pooled exactly."""
    num_clips, num_members = len(pool.clips), len(pool.members)
    held_out = _repeated(fitted, num_clips)
    if num_clips > 1:
        for clip in range(num_clips):
            without = blender.fit([other for other in range(num_clips) if other != clip])
            for session, weights in without.weights.items():
                held_out[session][clip] = weights
    sets = leave_one_out_sets(num_clips)
    blended = pool.score_sets([held_out, fitted.weights], sets, metric=metric, scales=fitted.scales).pooled
    mean = pool.score_sets([np.full(num_members, 1 / num_members)], sets, metric=metric).pooled[:, 0]
    gain = jackknife(blended[:, 0] - mean)
    gate = Gate(
        candidate=blender.name,
        mean=float(mean[0]),
        held_out=float(blended[0, 0]),
        in_sample=float(blended[0, 1]),
        gain=gain,
        is_open=num_clips >= MIN_CLIPS and gain.lower_bound > 0,
    )
    return gate, held_out


def _repeated(blended: Blended, num_clips: int) -> dict[str, Float64[np.ndarray, "clips k"]]:
    return {session: np.tile(weights, (num_clips, 1)) for session, weights in blended.weights.items()}


def _embed(
    weights: Float64[np.ndarray, "... k"], places: Sequence[int], num_members: int
) -> Float64[np.ndarray, "... members"]:
    """Give members that are not in the pool a weight of 0."""
    embedded = np.zeros((*weights.shape[:-1], num_members))
    embedded[..., list(places)] = weights
    return embedded


def _embed_scales(scales: Scales | None, places: Sequence[int], num_members: int) -> Scales | None:
    if scales is None:
        return None
    embedded = {}
    for session, factors in scales.items():
        embedded[session] = np.ones((num_members, factors.shape[1]), np.float32)
        embedded[session][list(places)] = factors
    return embedded
