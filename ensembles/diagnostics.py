"""Diagnose an ensemble: scores with intervals, contributions, diversity, cost, share of the ceiling."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int

from data.recording import Recording, Stimulus, Trial
from ensembles.analysis import (
    Analysis,
    ByMetric,
    CeilingShare,
    CostPoint,
    CurvePoint,
    MemberScore,
    Protocol,
    SystemScore,
)
from ensembles.blending import mean_of_subsets
from ensembles.clip_moments import ClipMoments, PooledMoments, guarded_ratio
from ensembles.evidence import METRICS, Evidence, Metric, Weights
from ensembles.gate import Choice
from ensembles.intervals import Interval, jackknife, leave_one_out_sets
from ensembles.official_responses import OfficialResponses
from training.ceiling import Ceiling, CeilingAccumulator
from training.scored_frames import LAST_FRAME, ScoreError

NUM_ORDERS = 20
"""Random orders in which members are added for the curve."""


def analyze(
    choice: Choice,
    *,
    choose_on: Evidence,
    report_on: Evidence,
    recordings: Sequence[Recording] = (),
    groups: Mapping[str, str] | None = None,
    costs: Mapping[str, float] | None = None,
    cost_unit: str = "members",
) -> Analysis:
    """Find out everything that is reported of an ensemble.

    Args:
        choice: the weights.
        choose_on: evidence that chose them.
        report_on: evidence of the clips that are reported; the same to report by leaving clips out.
        recordings: of the reported sessions, for the noise ceiling; without them it is left out.
        groups: architecture of each member.
        costs: of each member's predictions; default 1 each.
        cost_unit: what costs are counted in.

    Raises:
        ValueError: the evidence is not of the members of the choice.
    """
    for evidence in (choose_on, report_on):
        if evidence.members != choice.members:
            raise ValueError(
                f"evidence is of {', '.join(evidence.members)}, but must be of {', '.join(choice.members)}"
            )
    same = choose_on.fingerprint == report_on.fingerprint
    protocol: Protocol = "leave_one_clip_out" if same else "other_clips"
    chosen: Weights = choice.held_out_weights if same else choice.by_session
    members = choice.members
    costs = costs or dict.fromkeys(members, 1.0)
    sets = _Sets(report_on)
    plain: list[tuple[str, str, Weights]] = [
        ("best_single", "best single member", _best_single(choice, choose_on, same=same)),
        ("mean", "mean", _mean_of(members, choice.kept)),
    ]
    if choice.broken:
        plain.insert(1, ("mean_of_all", "mean with broken members", _mean_of(members, members)))
    alone = [*(weights for *_, weights in plain), *np.eye(len(members))]
    without = {place: _without(choice, chosen, place) for place in _removable(choice)}
    blends = [chosen, *without.values()]
    scores = {
        metric: np.concatenate(
            [
                report_on.score_sets(alone, sets.table, metric=metric).by_session,
                report_on.score_sets(blends, sets.table, metric=metric, scales=choice.scales).by_session,
            ],
            axis=2,
        )
        for metric in METRICS
    }
    at_chosen = len(alone)
    systems = [
        sets.system(name, title, {m: scores[m][:, :, i] for m in METRICS})
        for i, (name, title, _) in enumerate(plain)
    ]
    systems.append(sets.system("chosen", _title(choice), {m: scores[m][:, :, at_chosen] for m in METRICS}))

    def difference(first: int, second: int) -> ByMetric:
        return sets.overall({m: scores[m][:, :, first] - scores[m][:, :, second] for m in METRICS})

    contributions = {
        place: difference(at_chosen, at_chosen + 1 + number) for number, place in enumerate(without)
    }
    dropped = {broken.member for broken in choice.broken}
    pooled = ClipMoments.load(report_on, metric=choice.metric).pool(range(len(report_on.clips)))
    correlation, kept = _correlation(pooled), [members.index(member) for member in choice.kept]
    mean_correlation = _mean_off_diagonal(correlation[np.ix_(kept, kept)])
    front, others = _front(pooled, members, kept, [costs[member] for member in members])
    ceiling, note = _ceiling(report_on, recordings, systems[-1])
    in_sample = {
        metric: choose_on.score(choice.by_session, metric=metric, scales=choice.scales).pooled
        for metric in METRICS
    }
    return Analysis(
        choice=choice,
        protocol=protocol,
        chosen_on=choose_on.tier,
        reported_on=report_on.tier,
        num_clips=len(report_on.clips),
        num_neurons=report_on.num_neurons,
        num_masked=sum(report_on.num_masked.values()),
        num_constant=report_on.score(chosen, scales=choice.scales).num_constant,
        systems=tuple(systems),
        gain=difference(at_chosen, [name for name, *_ in plain].index("mean")),
        gain_over_best=difference(at_chosen, 0),
        in_sample=in_sample,
        members=tuple(
            MemberScore(
                member=member,
                group=groups[member] if groups else "",
                weight=float(choice.weights[place]),
                is_broken=member in dropped,
                score=sets.overall({m: scores[m][:, :, len(plain) + place] for m in METRICS}),
                contribution=contributions.get(place),
                cost=float(costs[member]),
            )
            for place, member in enumerate(members)
        ),
        correlation=correlation,
        mean_correlation=mean_correlation,
        effective_number=len(kept) / (1 + (len(kept) - 1) * mean_correlation) if len(kept) > 1 else 1.0,
        curve=_curve(pooled, kept, mean_correlation),
        front=front,
        costs=others,
        cost_unit=cost_unit,
        ceiling=ceiling,
        ceiling_note=note,
    )


class _Sets:
    """Which multisets of clips give overall scores, scores of classes, and the jackknife of both."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        num_clips = len(evidence.clips)
        everything = leave_one_out_sets(num_clips)
        self._own: dict[Stimulus, slice] = {}
        self._clips: dict[Stimulus, list[int]] = {}
        parts, row = [everything], len(everything)
        stimuli = sorted({clip.stimulus for clip in evidence.clips})
        for stimulus in stimuli:
            clips = [number for number, clip in enumerate(evidence.clips) if clip.stimulus == stimulus]
            own = np.zeros((len(clips) + 1, num_clips), np.int64)
            own[:, clips] = leave_one_out_sets(len(clips))
            parts.append(own)
            self._own[stimulus] = slice(row, row + len(own))
            row += len(own)
        self.table: Int[np.ndarray, "q clips"] = np.concatenate(parts)
        self._overall = slice(0, num_clips + 1)
        self._num_neurons = np.array([evidence.num_neurons[session] for session in evidence.sessions])

    def system(
        self, name: str, title: str, scores: Mapping[Metric, Float64[np.ndarray, "s q"]]
    ) -> SystemScore:
        sessions = self._evidence.sessions
        return SystemScore(
            name=name,
            title=title,
            overall=self.overall(scores),
            by_session={session: self._of_session(place, scores) for place, session in enumerate(sessions)},
            by_stimulus={
                str(stimulus): {m: self._pooled(scores[m][:, rows]) for m in METRICS}
                for stimulus, rows in self._own.items()
            },
        )

    def overall(self, scores: Mapping[Metric, Float64[np.ndarray, "s q"]]) -> dict[Metric, Interval]:
        return {m: self._pooled(scores[m][:, self._overall]) for m in METRICS}

    def _of_session(self, place: int, scores: Mapping[Metric, Float64[np.ndarray, "s q"]]) -> ByMetric:
        own = [0, *(1 + clip for clip in self._evidence.clips_of[self._evidence.sessions[place]])]
        return {m: jackknife(scores[m][place, own]) for m in METRICS}

    def _pooled(self, scores: Float64[np.ndarray, "s q"]) -> Interval:
        known = ~np.isnan(scores)
        neurons = np.where(known, self._num_neurons[:, None], 0)
        total = np.maximum(neurons.sum(axis=0), 1)
        pooled = (np.where(known, scores, 0.0) * neurons).sum(axis=0) / total
        if not known[:, 1:].any(axis=0).all():
            # A class of one clip leaves nothing when it is left out.
            return Interval(value=float(pooled[0]), error=math.nan, num_clips=1)
        return jackknife(pooled)


def _title(choice: Choice) -> str:
    how = "forced" if choice.forced else "chosen"
    return f"{how}: {choice.blend}"


def _mean_of(members: Sequence[str], kept: Sequence[str]) -> Float64[np.ndarray, " k"]:
    weights = np.array([float(member in kept) for member in members])
    weights /= weights.sum()
    return weights


def _best_single(choice: Choice, evidence: Evidence, *, same: bool) -> Weights:
    """Pick the best member on the clips that choose; for the same clips, anew without each of them."""
    one_hot: Float64[np.ndarray, "k k"] = np.eye(len(choice.members))
    if not same or len(evidence.clips) < 2:
        best: Float64[np.ndarray, " k"] = one_hot[int(choice.single_scores.argmax())]
        return best
    sets = leave_one_out_sets(len(evidence.clips))[1:]
    scores = evidence.score_sets(list(one_hot), sets, metric=choice.metric).pooled
    by_clip: Float64[np.ndarray, "clips k"] = one_hot[scores.argmax(axis=1)]
    return by_clip


def _removable(choice: Choice) -> list[int]:
    used = np.flatnonzero(choice.weights > 0)
    return used.tolist() if len(used) > 1 else []


def _without(choice: Choice, weights: Weights, place: int) -> dict[str, Float64[np.ndarray, "..."]]:
    assert isinstance(weights, Mapping)
    others = np.array([float(member in choice.kept) for member in choice.members])
    others[place] = 0.0
    reduced = {}
    for session, of_session in weights.items():
        reduced[session] = np.array(of_session, dtype=np.float64)
        reduced[session][..., place] = 0.0
        # Weights for some clip may be this member alone; without it the others are equal.
        empty = reduced[session].sum(axis=-1) == 0
        reduced[session][empty] = others
    return reduced


def _correlation(pooled: PooledMoments) -> Float64[np.ndarray, "k k"]:
    num_members = pooled.num_members
    correlation = np.eye(num_members)
    variance = pooled.covariance[np.arange(num_members), np.arange(num_members)]
    for first, second in combinations(range(num_members), 2):
        ratio = guarded_ratio(pooled.covariance[first, second], variance[first] * variance[second])
        varies = (variance[first] > 0) & (variance[second] > 0)
        mean = float(ratio[varies].mean()) if varies.any() else 0.0
        correlation[first, second] = correlation[second, first] = mean
    return correlation


def _mean_off_diagonal(correlation: Float64[np.ndarray, "k k"]) -> float:
    num_members = len(correlation)
    if num_members < 2:
        return 1.0
    return float((correlation.sum() - np.trace(correlation)) / (num_members * (num_members - 1)))


def _curve(pooled: PooledMoments, kept: Sequence[int], mean_correlation: float) -> tuple[CurvePoint, ...]:
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


def _front(
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


def _ceiling(
    evidence: Evidence, recordings: Sequence[Recording], chosen: SystemScore
) -> tuple[CeilingShare | None, str]:
    if not recordings:
        return None, "not measured"
    try:
        ceilings = measure_ceilings(evidence, recordings)
    except ScoreError as error:
        return None, str(error)
    single = float(np.concatenate([ceiling.single_trial_max for ceiling in ceilings]).mean())
    average = float(np.concatenate([ceiling.cc_max for ceiling in ceilings]).mean())
    if single <= 0 or average <= 0:
        return None, "no neuron has a measurable signal"
    share = CeilingShare(
        single_trial=single,
        to_average=average,
        share_single_trial=chosen.overall["single_trial"].value / single,
        share_to_average=chosen.overall["to_average"].value / average,
    )
    return share, ""


def measure_ceilings(evidence: Evidence, recordings: Sequence[Recording]) -> list[Ceiling]:
    """Estimate the noise ceilings of the scored trials of each session from repeats.

    Raises:
        ScoreError: no video is repeated, or responses are missing or not complete.
    """
    ceilings = []
    for recording in recordings:
        wanted = set(evidence.trials_of[recording.session])
        repeats: dict[str, list[Trial]] = {}
        for trial in recording.trials:
            if trial.index in wanted:
                repeats.setdefault(trial.video_id, []).append(trial)
        responses = OfficialResponses(recording)
        neurons = slice(0, len(recording.neurons.ids))
        accumulator = CeilingAccumulator(recording.session, neurons.stop)
        for video_id, trials in sorted(repeats.items()):
            if len(trials) < 2:
                continue
            stops = [min(trial.num_frames, LAST_FRAME) for trial in trials]
            accumulator.update(
                [responses.read(trial, 0, stop, neurons) for trial, stop in zip(trials, stops, strict=True)],
                video_id=video_id,
            )
        ceilings.append(accumulator.result())
    return ceilings
