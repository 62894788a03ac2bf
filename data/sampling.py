"""Which clips an epoch shows, in which order: a table computed from a seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """How training clips are drawn. The defaults are those of the factorized and GRU baselines.

    Attributes:
        clip_frames: frames of a clip.
        frame_step: trial frames between two frames of a clip (DwiseNeuro: 16 frames with step 2).
        batch_size: clips of a batch, over all processes together.
        order: ``round``: a step is one batch of every session (baselines and ViV1T, which accumulate
            gradients over mice); ``cycle``: a step is one batch of one session, and sessions take turns
            (Dynamic-V1FM); ``mixed``: a step is one batch of all sessions shuffled together (DwiseNeuro).
        clips_per_session: clips drawn from each session in an epoch, rounded up to whole batches (DwiseNeuro:
            7,200); None draws as many as the session with the most trials has.
        max_trial_frames: later frames of a trial are never drawn. The official response scale ends with the
            300 frames of the training movies, and is arbitrary in the longer out-of-distribution clips.
    """

    clip_frames: int = 80
    frame_step: int = 1
    batch_size: int = 8
    order: Literal["round", "cycle", "mixed"] = "round"
    clips_per_session: int | None = None
    max_trial_frames: int = 300

    def __post_init__(self) -> None:
        """Refuse sizes below 1 and clips that no trial can hold."""
        for name in ("clip_frames", "frame_step", "batch_size", "clips_per_session", "max_trial_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        if self.order not in ("round", "cycle", "mixed"):
            raise ValueError(f"order is {self.order!r}, but must be one of round, cycle, mixed")
        if self.span > self.max_trial_frames:
            raise ValueError(
                f"clip_frames is {self.clip_frames} with frame_step {self.frame_step}, which spans "
                f"{self.span} frames, but must fit into max_trial_frames, {self.max_trial_frames}"
            )

    @property
    def span(self) -> int:
        """Trial frames from a clip's first to its last frame, both included."""
        return (self.clip_frames - 1) * self.frame_step + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochPlan:
    """All clips of an epoch. Within a step, each row of clips (a batch) is split over the processes.

    Attributes:
        session: position of the clip's session.
        trial: position of the clip's trial among the trials of its session.
        start: first frame of the clip.
    """

    session: Int[np.ndarray, "steps rows clips"]
    trial: Int[np.ndarray, "steps rows clips"]
    start: Int[np.ndarray, "steps rows clips"]

    def step(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> dict[int, list[tuple[int, int]]]:
        """Return one process's clips of a step.

        Args:
            step: position in the epoch.
            rank: number of this process; it takes the rank-th of ``num_ranks`` even shares of each batch.
            num_ranks: number of processes.

        Returns:
            (trial, start) of the clips, by session.
        """
        size = self.session.shape[2]
        mine = slice(size * rank // num_ranks, size * (rank + 1) // num_ranks)
        columns = (table[step, :, mine].ravel().tolist() for table in (self.session, self.trial, self.start))
        clips: dict[int, list[tuple[int, int]]] = {}
        for session, trial, start in sorted(zip(*columns, strict=True), key=lambda clip: clip[0]):
            clips.setdefault(session, []).append((trial, start))
        return clips


def count_steps(num_trials: Sequence[int], config: LoaderConfig) -> int:
    """Return the optimizer steps of an epoch.

    Args:
        num_trials: training trials of each session.
        config: how clips are drawn.
    """
    clips = config.clips_per_session or max(num_trials)
    if config.order == "mixed":
        return -(-clips * len(num_trials) // config.batch_size)
    rounds = -(-clips // config.batch_size)
    return rounds * len(num_trials) if config.order == "cycle" else rounds


def draw_epoch(
    num_starts: Sequence[Int[np.ndarray, " _"]], config: LoaderConfig, *, seed: int, epoch: int
) -> EpochPlan:
    """Draw the clips of an epoch: every trial of a session equally often, every start equally likely.

    A session's trials come in random order, and again in another order when they are used up. (DwiseNeuro
    draws trials with replacement; the other systems do as here.)

    Args:
        num_starts: for each session, the number of valid starts in each of its trials.
        config: how clips are drawn.
        seed: of the run.
        epoch: number of the epoch; all of its clips depend on ``seed`` and ``epoch`` alone.
    """
    num_sessions = len(num_starts)
    steps = count_steps([len(starts) for starts in num_starts], config)
    shape = (steps, num_sessions if config.order == "round" else 1, config.batch_size)
    total = steps * shape[1] * config.batch_size
    session = np.arange(total) % num_sessions
    if config.order == "mixed":
        session = np.random.default_rng([seed, epoch, num_sessions]).permutation(session)
    else:
        session = np.arange(total) // config.batch_size % num_sessions
    trial, start = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    for position, starts in enumerate(num_starts):
        rng = np.random.default_rng([seed, epoch, position])
        mine = session == position
        trial[mine] = _repeat_shuffled(len(starts), int(mine.sum()), rng)
        start[mine] = rng.integers(starts[trial[mine]])
    return EpochPlan(session=session.reshape(shape), trial=trial.reshape(shape), start=start.reshape(shape))


def _repeat_shuffled(num_items: int, count: int, rng: np.random.Generator) -> Int[np.ndarray, " count"]:
    rounds = -(-count // num_items)
    orders = rng.permuted(np.tile(np.arange(num_items), (rounds, 1)), axis=1)
    return orders.ravel()[:count]
