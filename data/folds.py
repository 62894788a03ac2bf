"""Folds grouped by video across mice, and what a training set has seen of the videos that score it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.recording import Recording, Tier, Trial

Trials = Mapping[str, Sequence[Trial]]
"""Trials of each session, by the session's name."""

SCORED_TIERS = tuple(tier for tier in Tier if tier not in (Tier.TRAIN, Tier.NONE))
"""The tiers that scores are reported on."""

PUBLIC_TIERS = tuple(tier for tier in Tier if tier != Tier.NONE)
"""With these, every trial whose responses are public is a training trial (DwiseNeuro's choice)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Which trials are trained on, and which of them are held out to choose by.

    Attributes:
        tiers: trials of these tiers take part, where their responses are public. So ``PUBLIC_TIERS`` is
            train and oracle for the competition's mice, and everything for the old mice.
        num_folds: folds, grouped by video across mice.
        fold: the fold that is held out, or None to train on all.
        seed: draws the folds; share it among runs that are to be compared or averaged.
    """

    tiers: tuple[Tier, ...] = (Tier.TRAIN,)
    num_folds: int = 7
    fold: int | None = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a fold that does not exist."""
        if not self.tiers:
            raise ValueError(f"tiers is empty, but must name at least one of {', '.join(Tier)}")
        if self.num_folds < 2:
            raise ValueError(f"num_folds is {self.num_folds}, but must be at least 2")
        if self.fold is not None and not 0 <= self.fold < self.num_folds:
            raise ValueError(f"fold is {self.fold}, but must be 0 to {self.num_folds - 1}, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Trials to train on, and trials that choose between runs; they share no video in any mouse."""

    train: Trials
    held_out: Trials


def assign_folds(trials: Trials, *, num_folds: int, seed: int) -> dict[str, int]:
    """Give every video a fold; all its trials, in every mouse, follow it.

    Videos with many trials go first, each to the fold that has the fewest trials of the video's own
    sessions (as a share of the session), so folds are balanced in every mouse. The result depends on
    the set of trials and the seed only, not on the order of sessions or trials.

    Returns:
        Fold (0 to ``num_folds - 1``) of each video id.

    Raises:
        ValueError: there are fewer videos than folds.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for session, of_session in trials.items():
        for trial in of_session:
            counts[trial.video_id][session] += 1
    if len(counts) < num_folds:
        raise ValueError(f"num_folds is {num_folds}, but must be at most the number of videos, {len(counts)}")
    videos = np.random.default_rng(seed).permutation(sorted(counts)).tolist()
    videos.sort(key=lambda video: -counts[video].total())
    loads = [Counter[str]() for _ in range(num_folds)]
    fold_of_video: dict[str, int] = {}
    for video in videos:
        fold = min(range(num_folds), key=lambda fold: _crowding(counts[video], loads[fold], trials))
        loads[fold].update(counts[video])
        fold_of_video[video] = fold
    return fold_of_video


def _crowding(counts: Counter[str], load: Counter[str], trials: Trials) -> tuple[float, int]:
    of_own_sessions = max(load[session] / len(trials[session]) for session in counts)
    return of_own_sessions, load.total()


def select_trials(recordings: Iterable[Recording], tiers: Iterable[Tier], *, labelled: bool = True) -> Trials:
    """Return the trials of some tiers, by session.

    Args:
        recordings: the sessions.
        tiers: the tiers to take.
        labelled: leave out trials whose responses are withheld.
    """
    wanted = set(tiers)
    return {
        recording.session: tuple(
            trial
            for trial in recording.trials
            if trial.tier in wanted and (trial.has_responses or not labelled)
        )
        for recording in recordings
    }


def split_trials(recordings: Sequence[Recording], config: SplitConfig) -> Split:
    """Split the trials that may be trained on into those that are and those that choose.

    Raises:
        ValueError: a session has no trial to train on.
    """
    trials = select_trials(recordings, config.tiers)
    for session, of_session in trials.items():
        if not of_session:
            raise ValueError(
                f"{session} has no trial with responses in the tiers {', '.join(config.tiers)}, "
                "but must have some: leave the session out or choose other tiers"
            )
    if config.fold is None:
        return Split(train=trials, held_out=dict.fromkeys(trials, ()))
    fold_of_video = assign_folds(trials, num_folds=config.num_folds, seed=config.seed)
    held_out = {
        session: tuple(trial for trial in of_session if fold_of_video[trial.video_id] == config.fold)
        for session, of_session in trials.items()
    }
    train = {
        session: tuple(trial for trial in of_session if fold_of_video[trial.video_id] != config.fold)
        for session, of_session in trials.items()
    }
    return Split(train=train, held_out=held_out)


def partner_test_movies(recordings: Iterable[Recording], train: Trials) -> frozenset[str]:
    """Return the videos of a training set that score some mouse, be it one that is not trained on.

    Movies are shared between mice: the test movies of one are oracle or test movies of its partner, and
    a model trained on the partner's responses to them has seen what it is tested on.

    Args:
        recordings: all sessions that may be scored, not only those that are trained on.
        train: the training trials.
    """
    trained_on = {trial.video_id for of_session in train.values() for trial in of_session}
    scored = select_trials(recordings, SCORED_TIERS, labelled=False)
    return frozenset(t.video_id for ts in scored.values() for t in ts if t.video_id in trained_on)
