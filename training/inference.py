"""From checkpoints to the prediction store, and from stored predictions to the score.

For the fused prediction of several encoders load each checkpoint once, let ``predict_tier`` yield its trials,
and add them up: loading inside the loop over trials would read every checkpoint once per trial.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.array_files import StoreError
from data.clips import ClipBatch
from data.folds import select_trials
from data.loading import iterate_trials
from data.normalization import Normalization, NormalizationConfig
from data.recording import Recording, Tier, Trial
from data.windows import WindowPlan
from training.checkpoint import CheckpointInfo, SessionIdentity, check_sessions, read_info
from training.device import configured, resolve_device
from training.encoders import TrainedEncoder, load_encoder
from training.metrics import BURN_IN_FRAMES, Score, ScoreAccumulator, SessionScore, combine, count_repeats
from training.micro_batch import is_out_of_memory
from training.predict import plan_for, predict_trial, predicted_frames
from training.prediction_info import PredictionError, PredictionInfo
from training.predictions import Predictions, PredictionStore
from training.scored_frames import LAST_FRAME
from training.spec import RunSpec, from_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialPrediction:
    """One predicted trial.

    Attributes:
        trial: which one.
        frames: first predicted frame and the frame behind the last.
        predicted: of these frames, in multiples of the responses' std, as the benchmark's server wants them.
    """

    trial: Trial
    frames: tuple[int, int]
    predicted: Float[np.ndarray, "n t"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionProgress:
    """How far storing predictions has come.

    Attributes:
        session: of the trial that was stored last.
        tier: the same.
        done: trials that are stored, those of an earlier process included.
        total: trials to store in all.
    """

    session: str
    tier: Tier
    done: int
    total: int


OnTrial = Callable[[PredictionProgress], None]


def store_predictions(
    checkpoint: Path,
    recordings: Sequence[Recording],
    store: PredictionStore,
    *,
    member: str,
    tiers: Sequence[Tier],
    device: str = "auto",
    batch_windows: int | None = None,
    on_trial: OnTrial = lambda _: None,
) -> list[PredictionInfo]:
    """Predict tiers with the kept encoder of a run, by the run's own inference, into a store.

    Every trial survives a crash once it is stored; called again, this goes on with the trials that are
    missing and leaves alone what is complete. When all is, the checkpoint's parameters are not even read.

    Args:
        checkpoint: folder of the kept encoder (``RunResult.checkpoint``).
        recordings: sessions the encoder was trained on, or some of them.
        store: where to.
        member: name of the run in the store.
        tiers: what to predict, also where responses are withheld; a session without trials of a tier is left
            out of it.
        device: "auto", "cpu", "cuda" or "cuda:K".
        batch_windows: windows computed at once; None as the run says. Halved when memory runs out.
        on_trial: called after each trial that is predicted.

    Returns:
        What is in the store now, tier by tier.

    Raises:
        CheckpointError: damaged, or of other sessions, neurons or data; says what differs.
        PredictionError: another process writes the same predictions, or a prediction is not finite.
        ValueError: no recording has a trial of some tier, or a trial is too short for the run's windows.
    """
    wanted = planned_predictions(checkpoint, recordings, member=member, tiers=tiers)
    missing = [info for info in wanted if not store.has(info)]
    total = sum(len(info.trials) for info in wanted)
    done = total - sum(len(info.trials) for info in missing)
    if not missing:
        return wanted
    trained = load_encoder(checkpoint, device=resolve_device(device))
    by_session = {recording.session: recording for recording in recordings}
    # Fitting may read the whole train tier, so it is done once for all tiers of a session.
    normalizations: dict[str, Normalization] = {}
    for info in missing:
        recording = by_session[info.session]
        if info.session not in normalizations:
            normalizations[info.session] = Normalization.fit(recording, trained.spec.normalization)
        with store.writer(info) as writer:
            awaited = set(writer.missing)
            done += len(info.trials) - len(awaited)
            for one in predict_tier(
                trained,
                recording,
                [trial for trial in recording.trials if trial.index in awaited],
                normalization=normalizations[info.session],
                batch_windows=batch_windows,
            ):
                writer.write(one.trial.index, one.predicted)
                done += 1
                on_trial(
                    PredictionProgress(session=info.session, tier=Tier(info.tier), done=done, total=total)
                )
    return wanted


def planned_predictions(
    checkpoint: Path, recordings: Sequence[Recording], *, member: str, tiers: Sequence[Tier]
) -> list[PredictionInfo]:
    """Return what ``store_predictions`` would leave in a store, without reading parameters.

    Raises:
        CheckpointError: damaged, or of other sessions, neurons or data; says what differs.
        ValueError: no recording has a trial of some tier, or a trial is too short for the run's windows.
    """
    info = read_info(checkpoint)
    check_sessions(info, recordings, source=checkpoint)
    spec = from_plain(info.spec)
    planned = []
    for tier in tiers:
        trials = select_trials(recordings, [tier], labelled=False)
        if not any(trials.values()):
            raise ValueError(f"tier is {tier}, but none of {', '.join(trials)} has a trial of it")
        planned += [
            _describe(info, spec, recording, trials[recording.session], member=member, tier=tier)
            for recording in recordings
            if trials[recording.session]
        ]
    return planned


def _describe(
    info: CheckpointInfo,
    spec: RunSpec,
    recording: Recording,
    trials: Sequence[Trial],
    *,
    member: str,
    tier: Tier,
) -> PredictionInfo:
    plan = plan_for(spec.inference, warmup_frames=spec.model.warmup_frames)
    identity = SessionIdentity.of(recording)
    return PredictionInfo(
        member=member,
        session=recording.session,
        tier=tier,
        trials=tuple(trial.index for trial in trials),
        frames=tuple(
            predicted_frames(
                plan,
                min(trial.num_frames, LAST_FRAME),
                where=f"trial {trial.index} of {recording.session}",
            )
            for trial in trials
        ),
        num_neurons=identity.num_neurons,
        neurons_sha256=identity.neurons_sha256,
        fingerprint=identity.fingerprint,
        checkpoint_sha256=info.sha256,
    )


def predict_tier(
    trained: TrainedEncoder,
    recording: Recording,
    trials: Sequence[Trial],
    *,
    normalization: Normalization | None = None,
    batch_windows: int | None = None,
) -> Iterator[TrialPrediction]:
    """Predict trials of one session, by the inference of the run that trained the encoder.

    Args:
        trained: from ``load_encoder``; loaded once, however many sessions and tiers it predicts.
        recording: one of the sessions it was trained on.
        trials: of the recording, with responses or without.
        normalization: fitted on the recording as the run's; None fits it.
        batch_windows: windows computed at once; None as the run says. Halved when memory runs out.

    Raises:
        ValueError: a trial is too short for the run's windows.
    """
    spec, device = trained.spec, next(trained.encoder.parameters()).device
    own = (normalization or Normalization.fit(recording, spec.normalization)).to(device)
    # A run that computed its statistics itself has a scale that differs from the server's by rounding.
    official = own if spec.normalization.statistics == "official" else official_scale(recording).to(device)
    plan = plan_for(spec.inference, warmup_frames=trained.encoder.warmup_frames)
    by_index = {trial.index: trial for trial in trials}
    windows = batch_windows or spec.inference.batch_windows
    for raw in iterate_trials(
        [recording],
        {recording.session: trials},
        max_trial_frames=LAST_FRAME,
        pin_memory=device.type == "cuda",
    ):
        trial = by_index[int(raw.trial[0])]
        clip = raw.to(device)
        with configured(spec.compute), torch.inference_mode():
            predicted, windows = _predict_halving(trained, own(clip), plan, batch_windows=windows)
            if official is own:
                scaled = own.to_official(predicted[None], clip.frames)
            else:
                scaled = official.to_official(own.to_raw(predicted[None], clip.frames), clip.frames)
        frames = predicted_frames(plan, clip.num_frames, where=f"trial {trial.index} of {recording.session}")
        yield TrialPrediction(
            trial=trial, frames=frames, predicted=scaled[0, :, slice(*frames)].cpu().numpy()
        )


def official_scale(recording: Recording) -> Normalization:
    """Return what brings raw responses into the unit of the benchmark's server (``to_official``).

    A recording that came without official statistics has those of its train tier, which they should be.
    """
    try:
        return Normalization.fit(recording, NormalizationConfig(responses="raw"))
    except StoreError as error:
        logger.info("%s; the scale is computed from the train tier", error)
        return Normalization.fit(recording, NormalizationConfig(responses="raw", statistics="recomputed"))


def _predict_halving(
    trained: TrainedEncoder, trial: ClipBatch, plan: WindowPlan, *, batch_windows: int
) -> tuple[Float[Tensor, "n t"], int]:
    """Predict a trial, with fewer windows at once if memory runs out; return how many that were."""
    while True:
        try:
            predicted, _ = predict_trial(
                trained.encoder, trial, plan, batch_windows=batch_windows, compute=trained.spec.compute
            )
            return predicted, batch_windows
        except (MemoryError, RuntimeError) as error:
            if batch_windows == 1 or not is_out_of_memory(error):
                raise
        batch_windows //= 2
        logger.warning("out of memory: going on with %d windows at a time", batch_windows)


def score_stored(
    store: PredictionStore,
    member: str,
    recordings: Sequence[Recording],
    tier: Tier,
    *,
    burn_in_frames: int = BURN_IN_FRAMES,
) -> Score:
    """Score stored predictions of a tier; sessions without trials of it are left out.

    Raises:
        PredictionError: predictions are missing, or of other neurons, trials or data.
        ValueError: no recording has a trial of the tier with responses.
    """
    trials = select_trials(recordings, [tier], labelled=True)
    if not any(trials.values()):
        raise ValueError(f"tier is {tier}, but none of {', '.join(trials)} has trials of it with responses")
    return combine(
        {
            recording.session: _score_session(
                store.open(member, recording.session, tier),
                recording,
                trials[recording.session],
                burn_in_frames=burn_in_frames,
            )
            for recording in recordings
            if trials[recording.session]
        }
    )


def _score_session(
    stored: Predictions, recording: Recording, trials: Sequence[Trial], *, burn_in_frames: int
) -> SessionScore:
    _require_predictions_of(stored.info, recording)
    scale = official_scale(recording)
    accumulator = ScoreAccumulator(
        recording.session,
        len(recording.neurons.ids),
        repeats=count_repeats(trials),
        burn_in_frames=burn_in_frames,
    )
    by_index = {trial.index: trial for trial in trials}
    for raw in iterate_trials([recording], {recording.session: trials}, max_trial_frames=LAST_FRAME):
        trial = by_index[int(raw.trial[0])]
        assert raw.responses is not None
        with torch.inference_mode():
            responses = scale.to_official(raw.responses, raw.frames)[0]
        accumulator.update(
            stored.trial(trial.index),
            responses.numpy(),
            trial=trial.index,
            video_id=trial.video_id,
            stimulus=trial.stimulus,
        )
    return accumulator.result()


def _require_predictions_of(info: PredictionInfo, recording: Recording) -> None:
    identity = SessionIdentity.of(recording)
    for name in ("num_neurons", "neurons_sha256", "fingerprint"):
        ours, theirs = getattr(identity, name), getattr(info, name)
        if ours != theirs:
            raise PredictionError(
                f"{name} of {recording.session} is {ours}, but {info.member} predicted a recording with "
                f"{theirs}: predict again with this recording"
            )
