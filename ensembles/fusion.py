"""One prediction from many: a weighted sum over members, added up while they predict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from data.folds import select_trials
from data.recording import Recording, Tier, Trial
from ensembles.gate import Choice
from ensembles.official_responses import OfficialResponses
from training.encoders import TrainedEncoder
from training.inference import TrialPrediction, predict_tier
from training.metrics import Score, ScoreAccumulator, combine, count_repeats
from training.predictions import PredictionStore
from training.scored_frames import LAST_FRAME


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fusion:
    """The weights of an ensemble; members without a weight are not in it.

    Attributes:
        members: names, in the order of the weights.
        weights: of each session and member, sum 1.
        scales: factors of each member's predictions by session and neuron; None for 1.
    """

    members: tuple[str, ...]
    weights: Mapping[str, tuple[float, ...]]
    scales: Mapping[str, Float[np.ndarray, "k _"]] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that are not shares."""
        for session, weights in self.weights.items():
            if len(weights) != len(self.members):
                raise ValueError(
                    f"{session} has {len(weights)} weights, but must have {len(self.members)}, one per member"
                )
            if not np.isfinite(weights).all() or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
                raise ValueError(
                    f"weights of {session} sum to {sum(weights):.6f}, but must be of at least 0 and sum to 1"
                )

    @classmethod
    def of(cls, choice: Choice) -> "Fusion":
        """Take the members of a choice that have a weight."""
        used = [choice.members.index(name) for name in choice.used]
        return cls(
            members=choice.used,
            weights={name: tuple(float(w[i]) for i in used) for name, w in choice.by_session.items()},
            scales=None if choice.scales is None else {n: s[used] for n, s in choice.scales.items()},
        )

    def over(
        self, members: Sequence[str]
    ) -> tuple[dict[str, Float64[np.ndarray, " pool"]], dict[str, Float32[np.ndarray, "pool _"]] | None]:
        """Return weights and factors for a larger pool, where members that are not in the ensemble have 0."""
        places = [list(members).index(name) for name in self.members]
        weights = {}
        for session, of_session in self.weights.items():
            weights[session] = np.zeros(len(members))
            weights[session][places] = of_session
        if self.scales is None:
            return weights, None
        scales = {}
        for session, factors in self.scales.items():
            scales[session] = np.ones((len(members), factors.shape[1]), np.float32)
            scales[session][places] = factors
        return weights, scales

    def factors(self, session: str, member: str) -> Float32[np.ndarray, "_ 1"]:
        """Return what a member's predictions are multiplied with, for all neurons or for each."""
        place = self.members.index(member)
        weight = self.weights[session][place]
        if self.scales is None:
            return np.full((1, 1), weight, np.float32)
        factors: Float32[np.ndarray, "_ 1"] = (weight * self.scales[session][place]).astype(np.float32)[
            :, None
        ]
        return factors


def fuse(
    parts: Mapping[str, tuple[tuple[int, int], Float[np.ndarray, "n _"]]], fusion: Fusion, *, session: str
) -> tuple[tuple[int, int], Float32[np.ndarray, "n t"]]:
    """Add members' predictions of one trial, over the frames that all of them predict.

    Args:
        parts: first frame and frame behind the last, and predictions, of each member.
        fusion: the weights.
        session: of the trial.

    Raises:
        ValueError: members have no frame in common.
    """
    first = max(parts[member][0][0] for member in fusion.members)
    stop = min(parts[member][0][1] for member in fusion.members)
    if first >= stop:
        raise ValueError(f"{', '.join(fusion.members)} have no predicted frame of a trial in common")
    total: Float32[np.ndarray, "n t"] | None = None
    for member in fusion.members:
        (start, _), predicted = parts[member]
        part = predicted[:, first - start : stop - start].astype(np.float32)
        part *= fusion.factors(session, member)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return (first, stop), total


def predict_fused(
    fusion: Fusion,
    encoders: Mapping[str, TrainedEncoder],
    recording: Recording,
    trials: Sequence[Trial],
) -> Iterator[TrialPrediction]:
    """Predict trials with all members at once; only the running sum is kept, nothing is stored.

    Args:
        fusion: the weights.
        encoders: of all members, each loaded once.
        recording: one of the sessions.
        trials: of it, with responses or without.
    """
    streams = {member: predict_tier(encoders[member], recording, trials) for member in fusion.members}
    for together in zip(*streams.values(), strict=True):
        parts = {member: (one.frames, one.predicted) for member, one in zip(streams, together, strict=True)}
        frames, predicted = fuse(parts, fusion, session=recording.session)
        yield TrialPrediction(trial=together[0].trial, frames=frames, predicted=predicted)


def score_fused(
    fusion: Fusion, store: PredictionStore, recordings: Sequence[Recording], *, tier: str
) -> Score:
    """Score what the ensemble really predicts, trial by trial, without any evidence.

    Args:
        fusion: the weights.
        store: predictions of all members.
        recordings: the sessions.
        tier: under this name the predictions are stored; where it is a tier, all its trials are scored.
    """
    scores = {}
    for recording in recordings:
        session = recording.session
        files = {member: store.open(member, session, tier) for member in fusion.members}
        wanted = files[fusion.members[0]].info.trials
        trials = [trial for trial in recording.trials if trial.index in wanted]
        if tier in tuple(Tier):
            trials = list(select_trials([recording], [Tier(tier)])[session])
        responses = OfficialResponses(recording)
        num_neurons = len(recording.neurons.ids)
        accumulator = ScoreAccumulator(session, num_neurons, repeats=count_repeats(trials))
        for trial in trials:
            parts = {
                member: (file.info.frames[file.info.trials.index(trial.index)], file.trial(trial.index))
                for member, file in files.items()
            }
            (first, stop), predicted = fuse(parts, fusion, session=session)
            num_frames = min(trial.num_frames, LAST_FRAME)
            if stop < num_frames:
                raise ValueError(
                    f"trial {trial.index} of {session} is predicted to frame {stop}, "
                    f"but must be to {num_frames}"
                )
            accumulator.update(
                predicted[:, : num_frames - first],
                responses.read(trial, 0, num_frames, slice(0, num_neurons)),
                trial=trial.index,
                video_id=trial.video_id,
                stimulus=trial.stimulus,
            )
        scores[session] = accumulator.result()
    return combine(scores)
