"""Diagnose an ensemble: scores with intervals, contributions, diversity, cost, share of the ceiling."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int

from data.recording import Recording, Stimulus
from ensembles.analysis import Analysis, ByMetric, MemberScore, Protocol, SystemScore
from ensembles.ceiling_share import share_of_ceiling
from ensembles.clip_moments import ClipMoments
from ensembles.diversity import cost_front, gain_curve, mean_off_diagonal, member_correlation
from ensembles.evidence import METRICS, Evidence, Metric, Weights
from ensembles.gate import Choice
from ensembles.intervals import Interval, jackknife, leave_one_out_sets


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
    correlation, kept = member_correlation(pooled), [members.index(member) for member in choice.kept]
    mean_correlation = mean_off_diagonal(correlation[np.ix_(kept, kept)])
    front, others = cost_front(pooled, members, kept, [costs[member] for member in members])
    ceiling, note = share_of_ceiling(report_on, recordings, systems[-1])
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
        curve=gain_curve(pooled, kept, mean_correlation),
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
