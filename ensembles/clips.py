"""What an ensemble is scored on: clips, the trials that show them, the frames that all members predict."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.recording import Recording, Stimulus, Trial
from training.prediction_info import PredictionError, common_frames
from training.predictions import Predictions, PredictionStore
from training.scored_frames import BURN_IN_FRAMES, LAST_FRAME, ScoreError

MAX_CLIPS = 12
"""A tier with more videos in a session than this is divided into this many groups of videos per class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The unit of evidence: a video in all mice that saw it, or a group of videos that is never divided.

    Attributes:
        name: the video's id, or a name of the group.
        video_ids: the videos, sorted.
        stimulus: class of all of them.
    """

    name: str
    video_ids: tuple[str, ...]
    stimulus: Stimulus


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrial:
    """The scored frames ``first`` to before ``stop`` of a trial, and its row in the files of predictions."""

    trial: Trial
    row: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionPlan:
    """All that is read of one session.

    Attributes:
        recording: the session.
        files: predictions of each member, in the order of the members.
        clips: number of each clip that the session shows, ascending, with its videos; a video is its repeats.
    """

    recording: Recording
    files: tuple[Predictions, ...]
    clips: Mapping[int, tuple[tuple[ScoredTrial, ...], ...]]

    @property
    def num_neurons(self) -> int:
        """Neurons of the session."""
        return self.files[0].info.num_neurons

    @property
    def num_trials(self) -> int:
        """Trials that are read."""
        return sum(len(repeats) for videos in self.clips.values() for repeats in videos)


def plan_sessions(
    store: PredictionStore,
    members: Sequence[str],
    recordings: Sequence[Recording],
    *,
    tier: str,
    max_clips: int = MAX_CLIPS,
) -> tuple[tuple[Clip, ...], tuple[SessionPlan, ...]]:
    """Find out what can be scored, and refuse what cannot be compared.

    Args:
        store: predictions of all members.
        members: their names.
        recordings: sessions with responses.
        tier: under this name the predictions are stored.
        max_clips: limit of the clips of a session and stimulus class.

    Raises:
        PredictionError: predictions are missing, or members predict other neurons, trials or units.
        ScoreError: a trial has no scored frame or withheld responses.
    """
    if not members or len(set(members)) != len(members):
        raise ValueError(f"members are {', '.join(members) or 'none'}, but must be one or more, once each")
    if not recordings:
        raise ValueError("recordings are empty, but evidence needs at least one session")
    sessions = [_scored_trials(store, members, recording, tier=tier) for recording in recordings]
    clips = _group([[scored.trial for scored in trials] for _, trials in sessions], max_clips=max_clips)
    number_of = {
        (clip.stimulus, video): number for number, clip in enumerate(clips) for video in clip.video_ids
    }
    plans = []
    for recording, (files, trials) in zip(recordings, sessions, strict=True):
        videos: dict[tuple[Stimulus, str], list[ScoredTrial]] = defaultdict(list)
        for scored in trials:
            videos[scored.trial.stimulus, scored.trial.video_id].append(scored)
        of_clip: dict[int, list[tuple[ScoredTrial, ...]]] = defaultdict(list)
        for key, repeats in sorted(videos.items()):
            of_clip[number_of[key]].append(tuple(repeats))
        numbered = {number: tuple(of_clip[number]) for number in sorted(of_clip)}
        plans.append(SessionPlan(recording=recording, files=tuple(files), clips=numbered))
    return clips, tuple(plans)


def _scored_trials(
    store: PredictionStore, members: Sequence[str], recording: Recording, *, tier: str
) -> tuple[list[Predictions], list[ScoredTrial]]:
    files = [store.open(member, recording.session, tier) for member in members]
    frames = common_frames([file.info for file in files])
    info = files[0].info
    if info.fingerprint != recording.fingerprint:
        raise PredictionError(
            f"predictions of {info.member} for {recording.session} were made from the data "
            f"{info.fingerprint[:12]}..., but the recording is {recording.fingerprint[:12]}...; predict again"
        )
    if info.num_neurons != len(recording.neurons.ids):
        raise PredictionError(
            f"predictions of {info.member} for {recording.session} have {info.num_neurons} neurons, "
            f"but the recording has {len(recording.neurons.ids)}; predict again"
        )
    trial_of = {trial.index: trial for trial in recording.trials}
    trials = []
    for row, (index, (first, stop)) in enumerate(zip(info.trials, frames, strict=True)):
        if index not in trial_of:
            raise PredictionError(f"trial {index} is predicted, but {recording.session} has no such trial")
        trials.append(_scored(trial_of[index], row, first, stop, session=recording.session))
    return files, trials


def _scored(trial: Trial, row: int, first: int, stop: int, *, session: str) -> ScoredTrial:
    if not trial.has_responses:
        raise ScoreError(f"responses of trial {trial.index} of {session} are withheld, but must be known")
    first, stop = max(first, BURN_IN_FRAMES), min(stop, trial.num_frames, LAST_FRAME)
    if first >= stop:
        raise ScoreError(
            f"{session}: the members have no frame of trial {trial.index} in common that is scored "
            f"({BURN_IN_FRAMES} to {min(trial.num_frames, LAST_FRAME)})"
        )
    return ScoredTrial(trial=trial, row=row, first=first, stop=stop)


def _group(sessions: Sequence[Sequence[Trial]], *, max_clips: int) -> tuple[Clip, ...]:
    """Make each video a clip, or groups of videos where a session has too many of a class."""
    videos: dict[Stimulus, set[str]] = defaultdict(set)
    most: dict[Stimulus, int] = defaultdict(int)
    for trials in sessions:
        of_session: dict[Stimulus, set[str]] = defaultdict(set)
        for trial in trials:
            of_session[trial.stimulus].add(trial.video_id)
        for stimulus, ids in of_session.items():
            videos[stimulus] |= ids
            most[stimulus] = max(most[stimulus], len(ids))
    clips = []
    for stimulus, ids in sorted(videos.items()):
        names = sorted(ids)
        num_groups = len(names) if most[stimulus] <= max_clips else max_clips
        for number in range(num_groups):
            group = tuple(names[number::num_groups])
            name = group[0] if len(names) == num_groups else f"{stimulus}-{number + 1}-of-{num_groups}"
            clips.append(Clip(name=name, video_ids=group, stimulus=stimulus))
    return tuple(clips)
