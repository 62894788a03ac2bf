"""Noise ceilings: how well any predictor could do, estimated from repeated presentations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from training.moments import CoMoments
from training.scored_frames import BURN_IN_FRAMES, LAST_FRAME, ScoredFrames, ScoreError

# Below these the normalized measures divide by next to nothing. Sources: for CC_max Wang et al. 2025,
# Nature 640; for FEV Cadena et al. 2019, PLoS Computational Biology 15(4).
MIN_CC_MAX = 0.4
MIN_FEV = 0.15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ceiling:
    """The ceilings of each neuron of one session, and where a prediction stands below them.

    Attributes:
        session: name of the recording.
        oracle: correlation of each response with the mean of the video's other repeats; too low, because that
            mean is itself noisy.
        signal_power: variance of the response to the video, without noise; can come out negative.
        single_trial_max: best single-trial correlation of a predictor that knows nothing but the video.
        cc_max: best correlation to average of such a predictor.
        fev: share of the single-trial variance that is due to the video.
        cc_norm: correlation to average divided by ``cc_max``; NaN without signal; None without a prediction.
        feve: explained share of the explainable variance; NaN without signal; None without a prediction.
        num_videos: videos with at least two repeats; others tell nothing about noise.
    """

    session: str
    oracle: Float[np.ndarray, " n"]
    signal_power: Float[np.ndarray, " n"]
    single_trial_max: Float[np.ndarray, " n"]
    cc_max: Float[np.ndarray, " n"]
    fev: Float[np.ndarray, " n"]
    cc_norm: Float[np.ndarray, " n"] | None
    feve: Float[np.ndarray, " n"] | None
    num_videos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingSummary:
    """Ceilings over the neurons of all sessions.

    Attributes:
        oracle: mean over all neurons.
        single_trial_max: mean over all neurons.
        cc_max: mean over all neurons; comparable with the correlation to average.
        share_reliable: share of neurons with ``cc_max`` above 0.4; the others are not in ``cc_norm``.
        share_explainable: share of neurons with ``fev`` of at least 0.15; the others are not in ``feve``.
        cc_norm: median over reliable neurons; None without a prediction or such neurons.
        feve: median over explainable neurons; None without a prediction or such neurons.
    """

    oracle: float
    single_trial_max: float
    cc_max: float
    share_reliable: float
    share_explainable: float
    cc_norm: float | None
    feve: float | None


class CeilingAccumulator:
    """Collect the repeats of one session, video by video, without keeping them.

    Videos may have different numbers of repeats and frames. As in the correlation to average, frames of all
    videos count the same and means are taken over all of them together.

    Args:
        session: for error messages and the result.
        num_neurons: neurons of the session.
        burn_in_frames: leading frames of a trial that are not scored.
        last_frame: frames from here on are not scored; None scores to the end.
    """

    def __init__(
        self,
        session: str,
        num_neurons: int,
        *,
        burn_in_frames: int = BURN_IN_FRAMES,
        last_frame: int | None = LAST_FRAME,
    ) -> None:
        self.session = session
        self.num_neurons = num_neurons
        self._frames = ScoredFrames(burn_in_frames=burn_in_frames, last_frame=last_frame)
        self._videos: list[_Video] = []
        self._singles = CoMoments.empty(num_neurons)
        self._leave_one_out = CoMoments.empty(num_neurons)
        self._averages = CoMoments.empty(num_neurons)
        self._noise = np.zeros(num_neurons)
        self._squared_error = np.zeros(num_neurons)
        self._with_prediction: bool | None = None

    def update(
        self,
        responses: Sequence[Float[np.ndarray, "n _t"]],
        predicted: Sequence[Float[np.ndarray, "n _t_out"]] | None = None,
        *,
        video_id: str,
    ) -> None:
        """Take in all repeats of one video; a video shown once is left out.

        Args:
            responses: all frames of each repeat, without NaN; repeats may differ in length.
            predicted: for the last frames of each repeat, in the scale of ``responses``.
            video_id: for error messages.

        Raises:
            ScoreError: wrong number of neurons or predictions, values that are not finite, or predictions for
                some videos only.
        """
        pairs = self._scored(responses, predicted, video_id=video_id)
        if len(responses) < 2:
            return
        if self._with_prediction not in (None, predicted is not None):
            raise ScoreError(f"{self.session}: predictions must be given for all videos or for none")
        self._with_prediction = predicted is not None
        num_repeats, num_frames = len(pairs), pairs[0][0].shape[1]
        mean_predicted = sum((p for p, _ in pairs), np.zeros((self.num_neurons, num_frames))) / num_repeats
        mean_responses = sum((r for _, r in pairs), np.zeros((self.num_neurons, num_frames))) / num_repeats
        single_variance = np.zeros(self.num_neurons)
        means = np.empty((num_repeats, self.num_neurons))
        for index, (p, r) in enumerate(pairs):
            single = CoMoments.of(p, r)
            self._singles.add(single)
            self._leave_one_out.add(
                CoMoments.of(mean_responses + (mean_responses - r) / (num_repeats - 1), r)
            )
            self._noise += ((r - mean_responses) ** 2).sum(axis=1) * num_repeats / (num_repeats - 1)
            self._squared_error += ((r - p) ** 2).sum(axis=1)
            single_variance += single.variance()[1]
            means[index] = single.mean[1]
        average = CoMoments.of(mean_predicted, mean_responses)
        self._averages.add(average)
        power = (num_repeats * average.variance()[1] - single_variance / num_repeats) / (num_repeats - 1)
        self._videos.append(_Video(num_frames=num_frames, power=power, means=means))

    def result(self) -> Ceiling:
        """Return the ceilings.

        Source:
            signal power: Sahani & Linden 2003, NIPS 15, eq. 1; CC_max and CC_norm: Schoppe et al. 2016,
            Frontiers in Computational Neuroscience 10:10; FEV and FEVE: Cadena et al. 2019, PLoS
            Computational Biology 15(4); oracle: Sinz et al. 2018, NeurIPS 31, leave-one-out.

        Raises:
            ScoreError: no video was shown twice.
        """
        if not self._videos:
            raise ScoreError(f"{self.session}: no video was shown twice, but a noise ceiling needs repeats")
        # A constant neuron has nothing to explain, whatever the rounding of its mean says.
        varies = ~self._singles.constant_traces()[1]
        power = np.where(varies, _signal_power(self._videos), 0.0)
        num_samples = np.maximum(self._singles.count, 2.0)
        total = np.where(varies, self._singles.scatter[1] / (num_samples - 1), 0.0)
        noise = np.where(varies, self._noise / num_samples, 0.0)
        cc_max = _root_of_share(power, self._averages.variance()[1])
        fev = np.divide(total - noise, total, out=np.zeros_like(total), where=total > 0)
        return Ceiling(
            session=self.session,
            oracle=self._leave_one_out.correlation(),
            signal_power=power,
            single_trial_max=_root_of_share(power, self._singles.variance()[1]),
            cc_max=cc_max,
            fev=fev,
            cc_norm=_share(self._averages.correlation(), cc_max) if self._with_prediction else None,
            feve=(1 - _share(self._squared_error / num_samples - noise, total - noise))
            if self._with_prediction
            else None,
            num_videos=len(self._videos),
        )

    def _scored(
        self,
        responses: Sequence[Float[np.ndarray, "n _t"]],
        predicted: Sequence[Float[np.ndarray, "n _t_out"]] | None,
        *,
        video_id: str,
    ) -> list[tuple[Float[np.ndarray, "n scored"], Float[np.ndarray, "n scored"]]]:
        if predicted is not None and len(predicted) != len(responses):
            raise ScoreError(
                f"{self.session}: {video_id} has {len(responses)} repeats and {len(predicted)} predictions, "
                "but must have the same number of both"
            )
        scored = []
        for repeat, response in enumerate(responses):
            where = f"{self.session}: repeat {repeat} of {video_id}"
            if len(response) != self.num_neurons:
                raise ScoreError(f"{where} has {len(response)} neurons, but must have {self.num_neurons}")
            r = self._frames.responses(response, where=where).astype(np.float64)
            if np.isnan(r).any():
                raise ScoreError(f"{where} has NaN responses, but a noise ceiling needs complete repeats")
            if predicted is None:
                scored.append((np.zeros_like(r), r))
            else:
                p = self._frames.predicted(predicted[repeat], response.shape[1], where=where)
                scored.append((p.astype(np.float64), r))
        # Repeats may differ by a frame: the movie was resampled at measured flip times.
        common = min((r.shape[1] for _, r in scored), default=0)
        return [(p[:, :common], r[:, :common]) for p, r in scored]


def summarize(ceilings: Iterable[Ceiling]) -> CeilingSummary:
    """Pool the neurons of all sessions."""
    ceilings = list(ceilings)
    cc_max = np.concatenate([ceiling.cc_max for ceiling in ceilings])
    fev = np.concatenate([ceiling.fev for ceiling in ceilings])
    return CeilingSummary(
        oracle=float(np.concatenate([ceiling.oracle for ceiling in ceilings]).mean()),
        single_trial_max=float(np.concatenate([ceiling.single_trial_max for ceiling in ceilings]).mean()),
        cc_max=float(cc_max.mean()),
        share_reliable=float((cc_max > MIN_CC_MAX).mean()),
        share_explainable=float((fev >= MIN_FEV).mean()),
        cc_norm=_median([c.cc_norm[c.cc_max > MIN_CC_MAX] for c in ceilings if c.cc_norm is not None]),
        feve=_median([c.feve[c.fev >= MIN_FEV] for c in ceilings if c.feve is not None]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Video:
    """What the signal power of a session needs to know of one video.

    ``power`` is the video's own signal power (variance about the video's mean), ``means`` the mean over
    frames of each repeat.
    """

    num_frames: int
    power: Float[np.ndarray, " n"]
    means: Float[np.ndarray, "k n"]


def _signal_power(videos: Sequence[_Video]) -> Float[np.ndarray, " n"]:
    """Join the signal powers of videos to that of all their frames together.

    Power within videos, plus the variance of their means; only products of different repeats are used, so
    noise adds nothing. For one video this is Sahani & Linden's formula; for several it is that formula's mean
    over all ways to join a repeat of one video to a repeat of the next.
    """
    weights = np.array([video.num_frames for video in videos], dtype=np.float64)
    weights /= weights.sum()
    shift = np.concatenate([video.means for video in videos]).mean(axis=0)
    averages = np.stack([video.means.mean(axis=0) - shift for video in videos])
    squares = np.stack([_mean_product(video.means - shift) for video in videos])
    within = np.stack([video.power for video in videos])
    square_of_mean = (weights @ averages) ** 2 - weights**2 @ (averages**2 - squares)
    power: Float[np.ndarray, " n"] = weights @ (within + squares) - square_of_mean
    return power


def _mean_product(means: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " n"]:
    """Return the mean product of two different repeats' means: an unbiased square of the video's mean."""
    num_repeats = len(means)
    product: Float[np.ndarray, " n"] = (means.sum(axis=0) ** 2 - (means**2).sum(axis=0)) / (
        num_repeats * (num_repeats - 1)
    )
    return product


def _root_of_share(part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    share = np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
    root: Float[np.ndarray, " n"] = np.sqrt(np.clip(share, 0.0, 1.0))
    return root


def _share(part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    share: Float[np.ndarray, " n"] = np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return share


def _median(parts: Sequence[Float[np.ndarray, " _n"]]) -> float | None:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(np.median(values)) if len(values) else None
