"""Checkpoints become stored predictions by the published inference, and stored predictions a score."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from raw_recordings import OLD_MOUSE, write_mouse
from training_runs import tiny_spec

from data.conversion import convert
from data.normalization import BASELINE, DWISENEURO, VIVIT_MIN_MAX, Normalization
from data.recording import Tier, open_store
from data.sampling import LoaderConfig
from data.windows import DWISENEURO_WINDOWS, V1FM_WINDOWS
from models.cores.dwiseneuro import DwiseNeuroConfig
from models.cores.v1fm import V1FMConfig
from training.checkpoint import CheckpointError, SessionIdentity
from training.encoders import load_encoder, pack_encoder
from training.inference import planned_predictions, predict_tier, score_stored, store_predictions
from training.material import Material
from training.metrics import BURN_IN_FRAMES
from training.prediction_info import PredictionError
from training.predictions import PredictionStore
from training.run import describe
from training.run_folder import RunFolder
from training.spec import InferenceConfig

CPU = torch.device("cpu")
TIERS = [Tier.ORACLE, Tier.LIVE_MAIN]

SPECS = {
    "v1fm": tiny_spec(
        model=V1FMConfig(
            clip_frames=30, channels=8, depth=1, num_heads=2, mlp_channels=6, levels=(2,), fusion="adaptive"
        ),
        loader=LoaderConfig(clip_frames=30, batch_size=2),
        normalization=BASELINE,
        # Early enough that several windows lie side by side in 64 frames.
        inference=InferenceConfig(windows=replace(V1FM_WINDOWS, start=3), batch_windows=2),
    ),
    "dwiseneuro": tiny_spec(
        model=DwiseNeuroConfig(
            canvas=(20, 20),
            stem_channels=8,
            channels=(8, 12),
            strides=(2, 1),
            expansion=2,
            squeeze=4,
            cortex_channels=(16, 32),
        ),
        loader=LoaderConfig(clip_frames=16, frame_step=2, batch_size=2),
        normalization=DWISENEURO,
        inference=InferenceConfig(windows=DWISENEURO_WINDOWS, batch_windows=5),
    ),
    "vivit": tiny_spec(normalization=VIVIT_MIN_MAX),
}


def plain_v1fm(encoder, trial):
    """The last 15 frames of windows of 30, side by side from frame 18, and the tail from a last window."""
    length = trial.num_frames
    starts = list(range(3, length - 30 + 1, 15))
    if starts[-1] + 30 < length:
        starts.append(length - 30)
    rates = np.full((len(encoder.readouts[trial.session].bias), length), np.nan)
    for start in starts:
        window = predict_window(encoder, trial, range(start, start + 30))
        for offset in range(15, 30):
            if np.isnan(rates[:, start + offset]).all():
                rates[:, start + offset] = window[:, offset - 15]
    return 18, rates[:, 18:]


def plain_dwiseneuro(encoder, trial):
    """Every window of 16 frames at step 2, averaged over the windows that hold a frame."""
    total, count = 0.0, np.zeros(trial.num_frames)
    for last in range(30, trial.num_frames):
        frames = range(last - 30, last + 1, 2)
        window = predict_window(encoder, trial, frames)
        placed = np.zeros((len(window), trial.num_frames))
        for position, frame in enumerate(frames):
            placed[:, frame] = window[:, position]
            count[frame] += 1
        total = total + placed
    return 0, total / count


def plain_vivit(encoder, trial):
    """The whole trial at once; the tubelet of 4 frames leaves the first three out."""
    return 3, predict_window(encoder, trial, range(trial.num_frames))


PLAIN = {"v1fm": plain_v1fm, "dwiseneuro": plain_dwiseneuro, "vivit": plain_vivit}


def predict_window(encoder, trial, frames):
    frames = list(frames)
    with torch.no_grad():
        rates = encoder(
            trial.video[:, :, frames],
            trial.behavior[:, :, frames],
            trial.pupil[:, :, frames],
            session=trial.session,
        )
    return rates[0].double().numpy()


def server_scale(recording, num_frames):
    """1 / std of each neuron and frame, with the benchmark's floor of 1 % of the mean std."""
    return 1 / floored(recording.statistics("responses", "std").astype(np.float64))[:, :num_frames]


def floored(std):
    threshold = 0.01 * np.nanmean(std)
    return np.where(std > threshold, std, threshold)


def to_server(spec, recording, num_frames):
    """From the unit that a model is trained in to the server's."""
    if spec.normalization.responses == "raw":
        return server_scale(recording, num_frames)
    if spec.normalization.statistics == "official":
        return np.ones((len(recording.neurons.ids), num_frames))
    # Its own statistics count the trials that have a frame; the official ones may know more of the last.
    traces = [recording.responses(trial) for trial in recording.trials if trial.tier == Tier.TRAIN]
    std = np.stack(
        [
            np.std([t[:, frame].astype(np.float64) for t in traces if t.shape[1] > frame], axis=0)
            for frame in range(min(num_frames, max(t.shape[1] for t in traces)))
        ],
        axis=1,
    )
    std = np.pad(std, ((0, 0), (0, num_frames - std.shape[1])), constant_values=np.nan)
    return floored(std) * server_scale(recording, num_frames)


def keep_untrained(spec, recordings, folder):
    """Write what a run keeps, with the parameters it starts from."""
    material = Material.prepare(recordings, spec, device=CPU)
    packed = pack_encoder(
        material.build_encoder().state_dict(), material.session_specs(), recordings[0].frame_shape
    )
    return RunFolder(folder, describe(spec, recordings)).save_kept(packed, epoch=1, score=0.0)


@pytest.mark.parametrize("family", sorted(SPECS))
def test_stored_predictions_are_those_of_a_plain_loop_over_windows(family, recordings, tmp_path):
    spec = SPECS[family]
    checkpoint = keep_untrained(spec, recordings, tmp_path / "run")
    store = PredictionStore(root=tmp_path / "store")
    store_predictions(checkpoint, recordings, store, member="a", tiers=TIERS)
    encoder = load_encoder(checkpoint).encoder
    for recording in recordings:
        normalization = Normalization.fit(recording, spec.normalization)
        for tier in TIERS:
            stored = store.open("a", recording.session, tier)
            stored.verify()
            trials = [trial for trial in recording.trials if trial.tier == tier]
            assert stored.info.trials == tuple(trial.index for trial in trials)
            for trial in trials[:2]:
                clip = normalization(whole_trial(recording, trial))
                first, rates = PLAIN[family](encoder, clip)
                assert stored.info.frames[trials.index(trial)] == (first, trial.num_frames)
                rates = rates * to_server(spec, recording, trial.num_frames)[:, first:]
                # Half precision keeps 11 bits.
                np.testing.assert_allclose(stored.trial(trial.index), rates, rtol=2.0**-10, atol=1e-6)


def whole_trial(recording, trial):
    from data.loading import cut_clips

    return cut_clips(recording, [(trial, 0)], num_frames=trial.num_frames)


def test_withheld_responses_are_no_reason_not_to_predict(recordings, tmp_path):
    checkpoint = keep_untrained(SPECS["vivit"], recordings, tmp_path / "run")
    store = PredictionStore(root=tmp_path / "store")
    withheld = [r for r in recordings if not any(t.has_responses for t in r.trials if t.tier in TIERS[1:])]
    assert withheld
    store_predictions(checkpoint, withheld, store, member="a", tiers=[Tier.LIVE_MAIN])
    with pytest.raises(ValueError, match="has trials of it with responses"):
        score_stored(store, "a", withheld, Tier.LIVE_MAIN)


def test_an_interrupted_store_is_continued_and_a_complete_one_left_alone(recordings, tmp_path):
    checkpoint = keep_untrained(SPECS["vivit"], recordings, tmp_path / "run")
    store, whole = (PredictionStore(root=tmp_path / name) for name in ("store", "whole"))
    infos = store_predictions(checkpoint, recordings, whole, member="a", tiers=TIERS)
    total = sum(len(info.trials) for info in infos)
    seen = []

    def interrupt(progress):
        seen.append(progress.done)
        if len(seen) == total - 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_predictions(checkpoint, recordings, store, member="a", tiers=TIERS, on_trial=interrupt)
    store_predictions(
        checkpoint,
        recordings,
        store,
        member="a",
        tiers=TIERS,
        on_trial=lambda progress: seen.append(progress.done),
    )
    assert seen == list(range(1, total + 1))
    for info in infos:
        one, other = (s.open("a", info.session, info.tier) for s in (store, whole))
        assert one.info == other.info == info
        assert one.sha256 == other.sha256
    # Nothing is left to do, so the parameters are not needed.
    (checkpoint / "state.pt").unlink()
    again = store_predictions(checkpoint, recordings, store, member="a", tiers=TIERS)
    assert again == infos == planned_predictions(checkpoint, recordings, member="a", tiers=TIERS)


def test_another_recording_of_the_same_name_is_refused(recordings, tmp_path):
    checkpoint = keep_untrained(SPECS["vivit"], recordings, tmp_path / "run")
    convert([write_mouse(tmp_path / "raw" / OLD_MOUSE, seed=1)], tmp_path / "other")
    other = open_store(tmp_path / "other")
    store = PredictionStore(root=tmp_path / "store")
    with pytest.raises(CheckpointError, match=f"{OLD_MOUSE} has other trials or data"):
        store_predictions(checkpoint, other, store, member="a", tiers=TIERS)
    store_predictions(checkpoint, recordings, store, member="a", tiers=[Tier.ORACLE])
    with pytest.raises(PredictionError, match=r"fingerprint of .* predict again"):
        score_stored(store, "a", other, Tier.ORACLE)
    with pytest.raises(ValueError, match="tier is final_test_bonus, but none of"):
        store_predictions(checkpoint, recordings, store, member="a", tiers=[Tier.FINAL_BONUS])


@pytest.mark.parametrize("family", ["vivit", "v1fm"])
def test_the_score_of_stored_predictions_is_numpys(family, recordings, tmp_path):
    spec = SPECS[family]
    checkpoint = keep_untrained(spec, recordings, tmp_path / "run")
    store = PredictionStore(root=tmp_path / "store")
    store_predictions(checkpoint, recordings, store, member="a", tiers=[Tier.ORACLE])
    score = score_stored(store, "a", recordings, Tier.ORACLE)
    single, averaged = [], []
    for recording in recordings:
        stored = store.open("a", recording.session, Tier.ORACLE)
        by_video = {}
        for trial in recording.trials:
            if trial.tier == Tier.ORACLE:
                measured = recording.responses(trial).astype(np.float64)
                measured = (measured * server_scale(recording, trial.num_frames))[:, BURN_IN_FRAMES:]
                predicted = stored.trial(trial.index)[:, -measured.shape[1] :].astype(np.float64)
                by_video.setdefault(trial.video_id, []).append((predicted, measured))
        every = [pair for pairs in by_video.values() for pair in pairs]
        single += correlations(every)
        averaged += correlations([mean_of(pairs) for pairs in by_video.values()])
    assert score.single_trial == pytest.approx(np.mean(single), abs=1e-6)
    assert score.to_average == pytest.approx(np.mean(averaged), abs=1e-6)


def correlations(pairs):
    predicted, measured = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
    return [np.corrcoef(p, m)[0, 1] for p, m in zip(predicted, measured, strict=True)]


def mean_of(pairs):
    frames = min(measured.shape[1] for _, measured in pairs)
    return tuple(np.mean([pair[side][:, :frames] for pair in pairs], axis=0) for side in (0, 1))


def test_two_encoders_are_fused_trial_by_trial_with_each_loaded_once(recordings, tmp_path):
    specs = {"a": SPECS["vivit"], "b": replace(SPECS["vivit"], seed=9)}
    checkpoints = {name: keep_untrained(spec, recordings, tmp_path / name) for name, spec in specs.items()}
    trained = [load_encoder(checkpoint) for checkpoint in checkpoints.values()]
    recording = recordings[0]
    trials = [trial for trial in recording.trials if trial.tier == Tier.ORACLE]
    fused = [
        (one.trial.index, (one.predicted + other.predicted) / 2)
        for one, other in zip(*(predict_tier(t, recording, trials) for t in trained), strict=True)
    ]
    store = PredictionStore(root=tmp_path / "store")
    for name, checkpoint in checkpoints.items():
        store_predictions(checkpoint, recordings[:1], store, member=name, tiers=[Tier.ORACLE])
    parts = [store.open(name, recording.session, Tier.ORACLE) for name in checkpoints]
    assert [index for index, _ in fused] == [trial.index for trial in trials]
    for index, mean in fused:
        expected = np.mean([part.trial(index) for part in parts], axis=0)
        np.testing.assert_allclose(mean, expected, rtol=2.0**-10, atol=1e-6)
    assert parts[0].info.checkpoint_sha256 != parts[1].info.checkpoint_sha256
    assert parts[0].info.neurons_sha256 == SessionIdentity.of(recording).neurons_sha256
