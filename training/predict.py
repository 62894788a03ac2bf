"""What a trained encoder says about trials: whole trials or windows, stitched, in the benchmark's unit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from data.clips import ClipBatch
from data.folds import Trials
from data.loading import iterate_trials
from data.normalization import Normalization
from data.recording import Recording, Trial
from data.windows import Stitcher, Window, WindowPlan, cut_windows
from models.encoder import Encoder
from training.device import ComputeConfig, autocast
from training.metrics import BURN_IN_FRAMES, Score, ScoreAccumulator, SessionScore, combine, count_repeats
from training.micro_batch import SharedOutOfMemoryError, is_out_of_memory
from training.ranks import Ranks
from training.spec import InferenceConfig


def predict_trial(
    encoder: Encoder,
    trial: ClipBatch,
    plan: WindowPlan,
    *,
    batch_windows: int,
    compute: ComputeConfig,
) -> tuple[Float[Tensor, "n t"], Bool[Tensor, " t"]]:
    """Predict one whole trial.

    Args:
        encoder: in evaluation mode.
        trial: all frames of one trial, normalized, on the encoder's device.
        plan: how it is cut (from ``plan_for``); one without window length shows the whole trial at once.
        batch_windows: windows computed at once.
        compute: precision.

    Returns:
        Predictions in the model's unit, and which frames have one.
    """
    stitcher: Stitcher | None = None
    for windows in _batches(plan.windows(trial.num_frames), batch_windows):
        clips = cut_windows(trial, windows)
        with torch.inference_mode(), autocast(compute, clips.video.device):
            predicted = encoder(clips.video, clips.behavior, clips.pupil, session=clips.session)
        if stitcher is None:
            stitcher = Stitcher(predicted.shape[1], trial.num_frames, device=predicted.device)
        stitcher.add(windows, predicted.float())
    assert stitcher is not None
    return stitcher.result()


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    # Interleaved sequences of a whole-trial plan may differ by a frame; a batch has one length.
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(window.length, []).append(window)
    for same in by_length.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]


def predictions(
    encoder: Encoder,
    recordings: Sequence[Recording],
    trials: Trials,
    *,
    normalizations: Mapping[str, Normalization],
    inference: InferenceConfig,
    compute: ComputeConfig,
    while_training: bool = False,
    max_trial_frames: int | None = 300,
) -> Iterator[tuple[Recording, Trial, Float[np.ndarray, "n t_out"], Float[np.ndarray, "n t"] | None]]:
    """Predict trials one by one, in the unit of the benchmark's server.

    Args:
        encoder: in evaluation mode, on its device.
        recordings: sessions of the trials.
        trials: what to predict, by session.
        normalizations: of the sessions, on the encoder's device.
        inference: how trials are cut.
        compute: precision.
        while_training: use the cheaper plan that scores epochs.
        max_trial_frames: later frames are not predicted; None predicts all.

    Yields:
        Recording, trial, predictions of the trial's last ``t_out`` frames, responses of all its frames (None
        where they are withheld), both per response std.
    """
    plan = plan_for(inference, warmup_frames=encoder.warmup_frames, while_training=while_training)
    device = next(encoder.parameters()).device
    by_index = {
        (recording.session, trial.index): (recording, trial)
        for recording in recordings
        for trial in trials.get(recording.session, ())
    }
    raw_trials = iterate_trials(
        recordings, trials, max_trial_frames=max_trial_frames, pin_memory=device.type == "cuda"
    )
    for raw in raw_trials:
        clip = raw.to(device)
        normalization = normalizations[raw.session]
        with torch.inference_mode():
            normalized = normalization(clip)
        recording, trial = by_index[raw.session, int(raw.trial[0])]
        first, _ = predicted_frames(plan, raw.num_frames, where=f"trial {trial.index} of {raw.session}")
        predicted, _ = predict_trial(
            encoder, normalized, plan, batch_windows=inference.batch_windows, compute=compute
        )
        official = normalization.to_official(predicted[None], clip.frames)[0, :, first:]
        responses = normalized.responses
        if responses is not None:
            responses = normalization.to_official(responses, clip.frames)[0]
        yield (
            recording,
            trial,
            official.cpu().numpy(),
            None if responses is None else responses.cpu().numpy(),
        )


def plan_for(inference: InferenceConfig, *, warmup_frames: int, while_training: bool = False) -> WindowPlan:
    """Return how trials are cut for a model: never so that its warm-up would be used.

    Args:
        inference: the plan, and the cheaper one that scores epochs.
        warmup_frames: of the model; they lead every window.
        while_training: take the cheaper one.
    """
    plan = inference.windows
    if while_training and inference.hop_while_training is not None:
        plan = replace(plan, hop=inference.hop_while_training)
    return replace(plan, lead=max(plan.lead, warmup_frames))


def predicted_frames(plan: WindowPlan, num_frames: int, *, where: str) -> tuple[int, int]:
    """Return the first frame that a plan predicts and the frame behind the last.

    Args:
        plan: with the model's warm-up, from ``plan_for``.
        num_frames: frames of the trial that may be predicted.
        where: trial and session, for errors.

    Raises:
        ValueError: the trial is too short for the plan, or the plan leaves gaps.
    """
    covered = sorted({frame for window in plan.windows(num_frames) for frame in window.kept_frames})
    first, stop = covered[0], covered[-1] + 1
    if len(covered) != stop - first or stop != num_frames:
        raise ValueError(
            f"the windows leave frames of {where} without a prediction; lower inference.windows.hop"
        )
    return first, stop


def score_trials(
    encoder: Encoder,
    recordings: Sequence[Recording],
    trials: Trials,
    *,
    normalizations: Mapping[str, Normalization],
    inference: InferenceConfig,
    compute: ComputeConfig,
    ranks: Ranks | None = None,
    while_training: bool = False,
    burn_in_frames: int = BURN_IN_FRAMES,
) -> Score:
    """Score an encoder on trials with responses; every process of a run gets the score of all sessions.

    Args:
        encoder: in evaluation mode, on its device.
        recordings: sessions of the trials.
        trials: what to score, by session.
        normalizations: of the sessions, on the encoder's device.
        inference: how trials are cut.
        compute: precision.
        ranks: this process among those of the run; sessions are shared out.
        while_training: use the cheaper plan that scores epochs.
        burn_in_frames: leading frames of a trial that are not scored.
    """
    ranks = ranks or Ranks()
    scored = [recording for recording in recordings if trials.get(recording.session)]
    mine = scored[ranks.rank :: ranks.world_size]

    def own() -> dict[str, SessionScore]:
        return _score_sessions(
            encoder,
            mine,
            trials,
            normalizations=normalizations,
            inference=inference,
            compute=compute,
            while_training=while_training,
            burn_in_frames=burn_in_frames,
        )

    return combine(_of_all(own, ranks, order=[recording.session for recording in scored]))


def _score_sessions(
    encoder: Encoder,
    recordings: Sequence[Recording],
    trials: Trials,
    *,
    normalizations: Mapping[str, Normalization],
    inference: InferenceConfig,
    compute: ComputeConfig,
    while_training: bool,
    burn_in_frames: int,
) -> dict[str, SessionScore]:
    accumulators = {
        recording.session: ScoreAccumulator(
            recording.session,
            len(recording.neurons.ids),
            repeats=count_repeats(trials[recording.session]),
            burn_in_frames=burn_in_frames,
        )
        for recording in recordings
    }
    for recording, trial, predicted, responses in predictions(
        encoder,
        recordings,
        trials,
        normalizations=normalizations,
        inference=inference,
        compute=compute,
        while_training=while_training,
    ):
        if responses is None:
            raise ValueError(f"responses of trial {trial.index} of {recording.session} are withheld")
        accumulators[recording.session].update(
            predicted, responses, trial=trial.index, video_id=trial.video_id, stimulus=trial.stimulus
        )
    return {session: accumulator.result() for session, accumulator in accumulators.items()}


def _of_all(
    own: Callable[[], dict[str, SessionScore]], ranks: Ranks, *, order: Sequence[str]
) -> dict[str, SessionScore]:
    """Score a process's sessions and return the scores of all; a failure in one is raised in all."""
    if ranks.world_size == 1:
        return own()
    scores: dict[str, SessionScore] | None = None
    failure: tuple[bool, str] | None = None
    try:
        scores = own()
    except (MemoryError, RuntimeError, ValueError) as error:
        failure = (is_out_of_memory(error), f"process {ranks.rank}: {error}")
    parts: list[tuple[dict[str, SessionScore] | None, tuple[bool, str] | None]]
    parts = [(None, None)] * ranks.world_size
    dist.all_gather_object(parts, (scores, failure))
    for _, failed in parts:
        if failed is not None:
            raise SharedOutOfMemoryError(failed[1]) if failed[0] else ValueError(failed[1])
    by_session = {session: score for part, _ in parts for session, score in (part or {}).items()}
    return {session: by_session[session] for session in order}
