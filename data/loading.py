"""From memory-mapped recordings to batches of clips, read ahead by background threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from data.clips import ClipBatch
from data.folds import Trials
from data.recording import Recording, Trial
from data.sampling import LoaderConfig, count_steps, draw_epoch

_Result = TypeVar("_Result")

_TORCH_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
}


class ClipLoader:
    """Steps of random training clips; the same seed gives the same steps, however they are read.

    The clips of an epoch do not depend on the number of threads, and those of a step, taken over all
    ranks, do not depend on the number of ranks: each rank reads its share of each batch.

    Attributes:
        config: how clips are drawn.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        trials: Trials,
        config: LoaderConfig,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        threads: int = 2,
        steps_ahead: int = 3,
        pin_memory: bool = False,
    ) -> None:
        """Check that clips can be cut from every trial.

        Args:
            recordings: the sessions, in the order in which they take turns.
            trials: training trials of each of these sessions.
            config: how clips are drawn.
            seed: of the run.
            rank: number of this process.
            num_ranks: processes that share each batch.
            threads: background threads that read; 0 reads when a step is asked for.
            steps_ahead: steps that are read before they are asked for.
            pin_memory: put the tensors where a GPU can fetch them by itself.

        Raises:
            ValueError: there is no session, a session has no trials, a trial has no responses or is shorter
                than a clip, or a batch has fewer clips than there are ranks.
        """
        if not recordings:
            raise ValueError("recordings is empty, but must hold at least one session")
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank is {rank}, but must be 0 to {num_ranks - 1}")
        if config.batch_size < num_ranks:
            raise ValueError(
                f"batch_size is {config.batch_size}, "
                f"but must be at least the number of processes, {num_ranks}"
            )
        self.config = config
        self._recordings = tuple(recordings)
        self._trials = tuple(_trainable(recording, trials, config) for recording in recordings)
        self._num_starts = [
            np.array([min(t.num_frames, config.max_trial_frames) - config.span + 1 for t in of_session])
            for of_session in self._trials
        ]
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        self._threads, self._steps_ahead, self._pin_memory = threads, steps_ahead, pin_memory

    @property
    def num_steps(self) -> int:
        """Steps of an epoch; the same on every rank."""
        return count_steps([len(of_session) for of_session in self._trials], self.config)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Generator[list[ClipBatch], None, None]:
        """Yield the steps of an epoch: batches of raw clips, one for each session in the step.

        Closing the iterator early (it closes itself when it is dropped) ends its threads.

        Args:
            epoch: number of the epoch, from 0.
            start_step: skip the steps before this one, to go on where another process stopped.
        """
        plan = draw_epoch(self._num_starts, self.config, seed=self._seed, epoch=epoch)
        steps = (
            plan.step(step, rank=self._rank, num_ranks=self._num_ranks)
            for step in range(start_step, self.num_steps)
        )
        jobs = (partial(self._read_step, clips) for clips in steps)
        return run_ahead(jobs, threads=self._threads, jobs_ahead=self._steps_ahead)

    def _read_step(self, clips: dict[int, list[tuple[int, int]]]) -> list[ClipBatch]:
        return [
            cut_clips(
                self._recordings[session],
                [(self._trials[session][trial], start) for trial, start in of_session],
                num_frames=self.config.clip_frames,
                frame_step=self.config.frame_step,
                pin_memory=self._pin_memory,
            )
            for session, of_session in clips.items()
        ]


def iterate_trials(
    recordings: Iterable[Recording],
    trials: Trials,
    *,
    max_trial_frames: int | None = None,
    threads: int = 1,
    trials_ahead: int = 2,
    pin_memory: bool = False,
) -> Generator[ClipBatch, None, None]:
    """Yield whole trials one by one, session by session, in the order given: for scoring and prediction.

    Args:
        recordings: the sessions; those without trials are passed over.
        trials: trials of each session (see ``select_trials``); responses are None where withheld.
        max_trial_frames: cut longer trials after this frame; None keeps all frames.
        threads: background threads that read; 0 reads when a trial is asked for.
        trials_ahead: trials that are read before they are asked for.
        pin_memory: put the tensors where a GPU can fetch them by itself.
    """
    jobs = (
        partial(
            cut_clips,
            recording,
            [(trial, 0)],
            num_frames=min(trial.num_frames, max_trial_frames or trial.num_frames),
            pin_memory=pin_memory,
        )
        for recording in recordings
        for trial in trials.get(recording.session, ())
    )
    return run_ahead(jobs, threads=threads, jobs_ahead=trials_ahead)


def cut_clips(
    recording: Recording,
    clips: Sequence[tuple[Trial, int]],
    *,
    num_frames: int,
    frame_step: int = 1,
    pin_memory: bool = False,
) -> ClipBatch:
    """Copy clips of one session out of the memory map, in the types in which they are stored.

    Args:
        recording: the session.
        clips: trial and first frame of each clip.
        num_frames: frames of each clip.
        frame_step: trial frames between two frames of a clip.
        pin_memory: put the tensors where a GPU can fetch them by itself.
    """
    span = (num_frames - 1) * frame_step + 1
    views = [recording.frames(trial, start, start + span, frame_step) for trial, start in clips]
    # Converting types here would cost more than the reading: numpy is slow at float16, the device is not.
    stack = partial(_stack, pin_memory=pin_memory)
    responses = [view.responses for view in views if view.responses is not None]
    if responses and len(responses) < len(views):
        raise ValueError(f"clips of {recording.session} mix trials with and without responses")
    return ClipBatch(
        session=recording.session,
        video=stack([view.video for view in views]).unsqueeze(1),
        behavior=stack([view.behavior for view in views]).transpose(1, 2),
        pupil=stack([view.pupil for view in views]).transpose(1, 2),
        responses=stack(responses).transpose(1, 2) if responses else None,
        trial=torch.tensor([trial.index for trial, _ in clips]),
        start=torch.tensor([start for _, start in clips]),
        frame_step=frame_step,
    )


def run_ahead(
    jobs: Iterable[Callable[[], _Result]], *, threads: int, jobs_ahead: int
) -> Generator[_Result, None, None]:
    """Yield the results of jobs in their order, while threads work on the next ones.

    A job's exception is raised where its result would have been yielded. Threads (rather than processes)
    are enough because copying releases the interpreter lock, and they hand on memory without another copy.

    Args:
        jobs: taken from lazily.
        threads: 0 runs each job when its result is asked for.
        jobs_ahead: results that may wait.
    """
    if threads == 0:
        yield from (job() for job in jobs)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    pending: deque[Future[_Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > jobs_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stack(arrays: list[Shaped[np.ndarray, "..."]], *, pin_memory: bool) -> Shaped[Tensor, "..."]:
    stacked = torch.empty(
        (len(arrays), *arrays[0].shape), dtype=_TORCH_DTYPES[arrays[0].dtype], pin_memory=pin_memory
    )
    # A read-only map cannot be a tensor, so numpy copies, into the tensor's own memory.
    for target, array in zip(stacked.numpy(), arrays, strict=True):
        np.copyto(target, array)
    return stacked


def _trainable(recording: Recording, trials: Trials, config: LoaderConfig) -> tuple[Trial, ...]:
    of_session = tuple(trials.get(recording.session, ()))
    if not of_session:
        raise ValueError(f"{recording.session} has no training trials: leave it out or choose other tiers")
    withheld = [trial.index for trial in of_session if not trial.has_responses]
    if withheld:
        raise ValueError(f"trials {withheld} of {recording.session} have no responses to train on")
    short = [trial.index for trial in of_session if trial.num_frames < config.span]
    if short:
        raise ValueError(
            f"trials {short} of {recording.session} are shorter than a clip, "
            f"which spans {config.span} frames: leave them out, or shorten clip_frames"
        )
    return of_session
