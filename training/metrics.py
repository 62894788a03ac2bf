"""The score: how well predictions correlate with recorded responses. Nothing else decides what is better."""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from data.recording import Stimulus, Trial
from training.moments import CoMoments, RepeatSum
from training.scored_frames import BURN_IN_FRAMES, LAST_FRAME, ScoredFrames, ScoreError
from training.scores import Correlations, NeuronCorrelations, Score, SessionScore, combine

__all__ = [
    "BURN_IN_FRAMES",
    "LAST_FRAME",
    "Correlations",
    "NeuronCorrelations",
    "Score",
    "ScoreAccumulator",
    "ScoreError",
    "SessionScore",
    "combine",
    "count_repeats",
]


class ScoreAccumulator:
    """Score one session trial by trial, without keeping the trials.

    Single trials need five sums per neuron. Each video of which repeats are still awaited holds two float64
    arrays of neurons x frames (32 MB for 8,000 neurons and 250 frames).

    Args:
        session: for error messages and the result.
        num_neurons: neurons of the session.
        repeats: presentations of each video that will come; a video is summarized and its memory freed with
            the last of them. Without it all videos are held until ``result``.
        burn_in_frames: leading frames of a trial that are not scored.
        last_frame: frames from here on are not scored; None scores to the end.
    """

    def __init__(
        self,
        session: str,
        num_neurons: int,
        *,
        repeats: Mapping[str, int] | None = None,
        burn_in_frames: int = BURN_IN_FRAMES,
        last_frame: int | None = LAST_FRAME,
    ) -> None:
        if num_neurons < 1:
            raise ValueError(f"num_neurons of {session} is {num_neurons}, but must be at least 1")
        self.session = session
        self.num_neurons = num_neurons
        self._expected = dict(repeats) if repeats is not None else None
        self._frames = ScoredFrames(burn_in_frames=burn_in_frames, last_frame=last_frame)
        self._trials: set[int] = set()
        self._open: dict[tuple[Stimulus, str], RepeatSum] = {}
        self._closed: dict[Stimulus, set[str]] = {}
        self._single: dict[Stimulus, CoMoments] = {}
        self._averaged: dict[Stimulus, CoMoments] = {}
        self._num_frames: dict[Stimulus, int] = {}
        self._num_masked = 0

    def update(
        self,
        predicted: Float[np.ndarray, "n t_out"],
        responses: Float[np.ndarray, "n t"],
        *,
        trial: int,
        video_id: str,
        stimulus: Stimulus,
    ) -> None:
        """Take in one trial.

        Args:
            predicted: for the last ``t_out`` frames of the trial, in the same scale as ``responses``.
            responses: all frames of the trial; NaN where there is no measurement.
            trial: index of the trial, for errors.
            video_id: what was shown; trials with the same id are repeats.
            stimulus: class of the video.

        Raises:
            ScoreError: wrong number of neurons, a prediction that misses scored frames or is not finite, an
                infinite response, a trial or repeat too many.
        """
        predicted, responses = self._scored(predicted, responses, trial=trial)
        self._check_turn(trial, video_id, stimulus)
        valid = ~np.isnan(responses)
        masked = valid.size - int(np.count_nonzero(valid))
        self._num_masked += masked
        mask = valid if masked else None
        self._trials.add(trial)
        self._num_frames[stimulus] = self._num_frames.get(stimulus, 0) + responses.shape[1]
        self._add(self._single, stimulus, CoMoments.of(predicted, responses, valid=mask))
        repeat = self._open.setdefault((stimulus, video_id), RepeatSum())
        repeat.add(predicted, responses, mask)
        if self._expected is not None and repeat.num_repeats == self._expected[video_id]:
            self._close(stimulus, video_id)

    def result(self) -> SessionScore:
        """Return the score of everything taken in so far.

        Raises:
            ScoreError: there was no trial, or announced repeats are missing.
        """
        if not self._trials:
            raise ScoreError(f"{self.session}: no trial was scored, but at least one must be")
        if self._expected is not None:
            self._check_complete(self._expected)
        averaged = {stimulus: moments.copy() for stimulus, moments in self._averaged.items()}
        videos = {stimulus: len(names) for stimulus, names in self._closed.items()}
        for (stimulus, _), repeat in self._open.items():
            self._add(averaged, stimulus, repeat.moments())
            videos[stimulus] = videos.get(stimulus, 0) + 1
        by_stimulus = {
            stimulus: _neuron_correlations(
                single, averaged[stimulus], num_frames=self._num_frames[stimulus], num_videos=videos[stimulus]
            )
            for stimulus, single in sorted(self._single.items())
        }
        overall = _neuron_correlations(
            self._total(self._single),
            self._total(averaged),
            num_frames=sum(self._num_frames.values()),
            num_videos=sum(videos.values()),
        )
        return SessionScore(
            session=self.session, neurons=overall, by_stimulus=by_stimulus, num_masked=self._num_masked
        )

    def _scored(
        self, predicted: Float[np.ndarray, "n t_out"], responses: Float[np.ndarray, "n t"], *, trial: int
    ) -> tuple[Float[np.ndarray, "n scored"], Float[np.ndarray, "n scored"]]:
        where = f"{self.session}: trial {trial}"
        if len(predicted) != self.num_neurons or len(responses) != self.num_neurons:
            raise ScoreError(
                f"{where} has predictions of {len(predicted)} and responses of {len(responses)} neurons, "
                f"but must have {self.num_neurons} of both"
            )
        scored = self._frames.responses(responses, where=where)
        return self._frames.predicted(predicted, responses.shape[1], where=where), scored

    def _check_turn(self, trial: int, video_id: str, stimulus: Stimulus) -> None:
        if trial in self._trials:
            raise ScoreError(f"{self.session}: trial {trial} came twice, but must be scored once")
        if self._expected is None:
            return
        if video_id not in self._expected:
            raise ScoreError(f"{self.session}: trial {trial} shows {video_id}, which was not announced")
        if video_id in self._closed.get(stimulus, ()):
            raise ScoreError(
                f"{self.session}: trial {trial} is one repeat of {video_id} too many, "
                f"but there must be {self._expected[video_id]}"
            )

    def _check_complete(self, expected: Mapping[str, int]) -> None:
        done = set[str]().union(*self._closed.values())
        for video_id, num_repeats in expected.items():
            if video_id not in done:
                seen = sum(r.num_repeats for (_, name), r in self._open.items() if name == video_id)
                raise ScoreError(
                    f"{self.session}: {seen} repeats of {video_id} were scored, but must be {num_repeats}"
                )

    def _close(self, stimulus: Stimulus, video_id: str) -> None:
        self._add(self._averaged, stimulus, self._open.pop((stimulus, video_id)).moments())
        self._closed.setdefault(stimulus, set()).add(video_id)

    def _add(self, sums: dict[Stimulus, CoMoments], stimulus: Stimulus, moments: CoMoments) -> None:
        sums.setdefault(stimulus, CoMoments.empty(self.num_neurons)).add(moments)

    def _total(self, sums: Mapping[Stimulus, CoMoments]) -> CoMoments:
        total = CoMoments.empty(self.num_neurons)
        for _, moments in sorted(sums.items()):
            total.add(moments)
        return total


def count_repeats(trials: Iterable[Trial]) -> dict[str, int]:
    """Return how often each video is shown, as ``ScoreAccumulator`` wants it announced."""
    repeats: dict[str, int] = {}
    for trial in trials:
        repeats[trial.video_id] = repeats.get(trial.video_id, 0) + 1
    return repeats


def _neuron_correlations(
    single: CoMoments, averaged: CoMoments, *, num_frames: int, num_videos: int
) -> NeuronCorrelations:
    return NeuronCorrelations(
        single_trial=single.correlation(),
        to_average=averaged.correlation(),
        constant=single.is_constant(),
        num_frames=num_frames,
        num_videos=num_videos,
    )
