"""Pools of members with predictions in memory or in a store, and their scores computed the plain way."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.recording import Neurons, Recording, Stimulus, Tier, Trial
from training.metrics import ScoreAccumulator, count_repeats
from training.prediction_info import PredictionInfo
from training.predictions import PredictionStore


class PoolRecording(Recording):
    """A recording of responses only; its official std is 1 for every neuron, so units do not change."""

    def __init__(self, session, trials, responses):
        self.session = session
        self.fingerprint = f"data of {session}"
        self.trials = tuple(trials)
        self._responses = responses
        num_neurons = next(iter(responses.values())).shape[0]
        self.neurons = Neurons(ids=np.arange(num_neurons), coordinates_um=np.zeros((num_neurons, 3)))

    def responses(self, trial):
        return self._responses[trial.index].T.copy().T

    def statistics(self, variable, name):
        assert (variable, name) == ("responses", "std")
        return np.ones((len(self.neurons.ids), 300), np.float32)


@dataclass(frozen=True)
class Pool:
    """Recordings, and predictions ``[session][member][trial] -> (n, frames of the member's window)``."""

    recordings: list
    predicted: dict
    windows: dict
    members: list

    def window(self, member, trial):
        first, stop = self.windows[member]
        return first, min(stop, trial.num_frames)

    def store(self, root) -> PredictionStore:
        store = PredictionStore(root=Path(root))
        for recording in self.recordings:
            for member in self.members:
                self.write(store, recording, member)
        return store

    def info(self, recording, member, **changes):
        info = PredictionInfo(
            member=member,
            session=recording.session,
            tier="oracle",
            trials=tuple(trial.index for trial in recording.trials),
            frames=tuple(self.window(member, trial) for trial in recording.trials),
            num_neurons=len(recording.neurons.ids),
            neurons_sha256="n",
            fingerprint=recording.fingerprint,
            checkpoint_sha256=member,
        )
        return replace(info, **changes)

    def write(self, store, recording, member, **changes):
        with store.writer(self.info(recording, member, **changes)) as writer:
            for trial in writer.missing:
                writer.write(trial, self.predicted[recording.session][member][trial])

    def stored(self, store, recording, member, trial):
        """The scored frames that all members predict, as the store has them, and their responses."""
        first = max(50, *(self.window(each, trial)[0] for each in self.members))
        stop = min(300, *(self.window(each, trial)[1] for each in self.members))
        own, _ = self.window(member, trial)
        values = store.open(member, recording.session, "oracle").trial(trial.index)
        return values[:, first - own : stop - own].astype(np.float64), recording.responses(trial)[
            :, first:stop
        ].astype(np.float64)


def make_pool(
    *,
    seed=0,
    neurons=(5, 7),
    num_members=4,
    videos=3,
    repeats=3,
    num_frames=90,
    alter=None,
    windows=None,
    noise=1.0,
):
    """Draw sessions that share their videos; ``alter(rng, responses, predicted)`` makes them hostile."""
    rng = np.random.default_rng(seed)
    members = [f"member-{number}" for number in range(num_members)]
    windows = windows or dict.fromkeys(members, (50, num_frames))
    recordings, predicted = [], {}
    for number, num_neurons in enumerate(neurons):
        session = f"mouse-{number}"
        trials, responses = [], {}
        predicted[session] = {member: {} for member in members}
        for video in range(videos):
            stimulus = Stimulus.GABOR if video == videos - 1 and videos > 2 else Stimulus.MOVIE
            signal = rng.gamma(1.0, size=(num_neurons, num_frames))
            errors = [rng.normal(size=signal.shape) for _ in members]
            for _ in range(repeats):
                trial = Trial(
                    index=len(trials), tier=Tier.ORACLE, num_frames=num_frames, video_id=f"video-{video}",
                    stimulus=stimulus, has_responses=True,
                )  # fmt: skip
                values = signal + noise * rng.normal(size=signal.shape)
                guesses = {
                    member: signal + (0.5 + 0.3 * place) * errors[place] + 0.1 * rng.normal(size=signal.shape)
                    for place, member in enumerate(members)
                }
                if alter is not None:
                    values, guesses = alter(rng, values, guesses)
                trials.append(trial)
                responses[trial.index] = values.astype(np.float32)
                for member, guess in guesses.items():
                    first, stop = windows[member]
                    predicted[session][member][trial.index] = guess[:, first:stop].astype(np.float32)
        recordings.append(PoolRecording(session, trials, responses))
    return Pool(recordings=recordings, predicted=predicted, windows=windows, members=members)


def direct_scores(pool, store, weights, *, clips=None, metric="single_trial", scales=None):
    """Correlate weighted means of all members' stored predictions in float64, frame by frame; per session."""
    scores = {}
    for recording in pool.recordings:
        scales_of = np.ones((len(pool.members), len(recording.neurons.ids))) if scales is None else scales[
            recording.session
        ]  # fmt: skip
        pairs = []
        by_video = {}
        for trial in recording.trials:
            parts = [pool.stored(store, recording, member, trial) for member in pool.members]
            responses = parts[0][1]
            valid = ~np.isnan(responses)
            mean = sum(w * s[:, None] * p for w, s, (p, _) in zip(weights, scales_of, parts, strict=True))
            by_video.setdefault(trial.video_id, []).append((mean, responses, valid))
        for video in by_video if clips is None else clips:
            for mean, responses, valid in _as_metric(by_video[video], metric):
                pairs.append((mean, responses, valid))
        scores[recording.session] = np.array(
            [_correlate([(m[n][v[n]], r[n][v[n]]) for m, r, v in pairs]) for n in range(len(pairs[0][0]))]
        )
    return scores


def _as_metric(repeats, metric):
    if metric == "single_trial":
        return repeats
    common = min(mean.shape[1] for mean, _, _ in repeats)
    valid = np.stack([v[:, :common] for _, _, v in repeats])
    count = np.maximum(valid.sum(axis=0), 1)
    mean = np.where(valid, np.stack([m[:, :common] for m, _, _ in repeats]), 0).sum(axis=0) / count
    responses = np.where(valid, np.stack([r[:, :common] for _, r, _ in repeats]), 0).sum(axis=0) / count
    return [(mean, responses, valid.any(axis=0))]


def _correlate(parts):
    mean, responses = (np.concatenate(each) for each in zip(*parts, strict=True))
    if len(mean) == 0:
        return 0.0
    mean_above, responses_above = mean - mean.mean(), responses - responses.mean()
    norm = np.sqrt((mean_above**2).sum() * (responses_above**2).sum())
    flat = (mean_above**2).mean() <= (2.4e-7 * mean.mean()) ** 2
    flat |= (responses_above**2).mean() <= (2.4e-7 * responses.mean()) ** 2
    return 0.0 if flat else float((mean_above * responses_above).sum() / norm)


def accumulated_score(pool, store, weights, recording):
    """Score a weighted mean with the project's own accumulator."""
    accumulator = ScoreAccumulator(
        recording.session, len(recording.neurons.ids), repeats=count_repeats(recording.trials)
    )
    for trial in recording.trials:
        parts = [store.open(m, recording.session, "oracle").trial(trial.index) for m in pool.members]
        mean = sum(w * part.astype(np.float64) for w, part in zip(weights, parts, strict=True))
        accumulator.update(
            mean,
            recording.responses(trial),
            trial=trial.index,
            video_id=trial.video_id,
            stimulus=trial.stimulus,
        )
    return accumulator.result()
