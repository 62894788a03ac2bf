"""Trials that no member was trained on: where members are chosen, so that the oracle tier only grades."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.folds import Trials, partner_test_movies, split_trials
from data.normalization import Normalization
from data.recording import Recording, Tier
from training.device import resolve_device
from training.encoders import load_encoder
from training.inference import planned_predictions, predict_tier
from training.prediction_info import PredictionInfo
from training.predictions import PredictionStore
from training.spec import RunSpec

HOLDOUT = "holdout"
"""Name of the common hold-out trials in the prediction store, where a tier's name stands otherwise."""


def common_holdout(specs: Sequence[RunSpec], recordings: Sequence[Recording]) -> Trials:
    """Return the training-tier trials that every run holds out; empty for all sessions unless each has some.

    Args:
        specs: the runs.
        recordings: the sessions.

    Raises:
        ValueError: a run was trained on trials of the oracle tier, which grades.
    """
    kept: dict[str, set[int]] = {}
    for spec in specs:
        if Tier.ORACLE in spec.split.tiers:
            raise ValueError(
                "split.tiers holds the oracle tier, but the oracle tier grades the ensemble: "
                "train members without it"
            )
        held_out = split_trials(recordings, spec.split).held_out
        for session, trials in held_out.items():
            # Only the train tier: test tiers that a run trains on are nobody else's hold-out.
            own = {trial.index for trial in trials if trial.tier is Tier.TRAIN}
            kept[session] = kept.get(session, own) & own
    if not all(kept.values()):
        return {recording.session: () for recording in recordings}
    return {
        recording.session: tuple(
            trial for trial in recording.trials if trial.index in kept[recording.session]
        )
        for recording in recordings
    }


def seen_test_movies(specs: Sequence[RunSpec], recordings: Sequence[Recording]) -> frozenset[str]:
    """Return the videos that score some mouse and that a run was trained on, be it in another mouse."""
    seen: frozenset[str] = frozenset()
    for split in {spec.split for spec in specs}:
        seen |= partner_test_movies(recordings, split_trials(recordings, split).train)
    return seen


def store_holdout(
    checkpoint: Path,
    recordings: Sequence[Recording],
    store: PredictionStore,
    *,
    member: str,
    trials: Mapping[str, Sequence[int]],
    device: str = "auto",
    on_trial: Callable[[object], None] = lambda _: None,
) -> list[PredictionInfo]:
    """Predict hold-out trials into the store; called again, it goes on.

    Args:
        checkpoint: folder of a kept encoder.
        recordings: the sessions.
        store: where to.
        member: name of the run in the store.
        trials: indices of the trials, by session.
        device: "auto", "cpu", "cuda" or "cuda:K".
        on_trial: called after each trial that is predicted.
    """
    planned = planned_predictions(checkpoint, recordings, member=member, tiers=[Tier.TRAIN])
    wanted = [_only(info, trials[info.session]) for info in planned]
    missing = [info for info in wanted if not store.has(info)]
    if not missing:
        return wanted
    trained = load_encoder(checkpoint, device=resolve_device(device))
    by_session = {recording.session: recording for recording in recordings}
    for info in missing:
        recording = by_session[info.session]
        normalization = Normalization.fit(recording, trained.spec.normalization)
        with store.writer(info) as writer:
            awaited = set(writer.missing)
            chosen = [trial for trial in recording.trials if trial.index in awaited]
            for one in predict_tier(trained, recording, chosen, normalization=normalization):
                writer.write(one.trial.index, one.predicted)
                on_trial(one)
    return wanted


def _only(info: PredictionInfo, trials: Sequence[int]) -> PredictionInfo:
    wanted = set(trials)
    pairs = [pair for pair in zip(info.trials, info.frames, strict=True) if pair[0] in wanted]
    return replace(
        info,
        tier=HOLDOUT,
        trials=tuple(trial for trial, _ in pairs),
        frames=tuple(frames for _, frames in pairs),
    )
