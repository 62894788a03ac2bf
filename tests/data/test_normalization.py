from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_recordings import NUM_PADDED_FRAMES, TinyRecording, tiny_arrays, tiny_trial

from data.loading import cut_clips
from data.normalization import (
    BASELINE,
    DWISENEURO,
    NORMALIZATIONS,
    VIVIT_AS_RELEASED,
    VIVIT_MIN_MAX,
    Normalization,
    NormalizationConfig,
    ScalingConfig,
    response_precision,
)
from data.recording import Tier

NUM_NEURONS, TRAIN_FRAMES = 5, 9


@pytest.fixture(scope="module")
def recording():
    """Six train trials of 9 frames, one of them of 8, and a longer test trial; neuron 4 is nearly silent."""
    trials = [tiny_trial(index, TRAIN_FRAMES - (index == 2)) for index in range(6)]
    trials.append(tiny_trial(7, 12, Tier.ORACLE))
    arrays = [tiny_arrays(trial, NUM_NEURONS, dtype=np.float32) for trial in trials]
    for values in arrays:
        values.responses[:, 4] *= 1e-5
        values.responses[:, 3] -= 60
    return TinyRecording("mouse", trials, arrays)


@pytest.fixture(scope="module")
def clips(recording):
    """Two clips with step 2; the second runs beyond the frames of the train tier."""
    return cut_clips(
        recording, [(recording.trials[1], 1), (recording.trials[-1], 5)], num_frames=4, frame_step=2
    )


def train_stack(recording, field):
    """The train tier as (trial, frame, ...) with NaN behind the end."""
    arrays = [getattr(recording.arrays[t.index], field) for t in recording.trials if t.tier == Tier.TRAIN]
    stack = np.full((len(arrays), TRAIN_FRAMES, *arrays[0].shape[1:]), np.nan)
    for target, array in zip(stack, arrays, strict=True):
        target[: len(array)] = array
    return stack


def rows(table, clips):
    """Rows of a statistic for each frame of the clips; later frames have the last row."""
    return np.stack([[table[min(int(f), TRAIN_FRAMES - 1)] for f in frames] for frames in clips.frames])


def variables(clips, normalized):
    """Name, raw values and normalized values of the inputs, as (clip, frame, ...)."""
    yield "video", clips.video.squeeze(1).numpy().astype(float), normalized.video.squeeze(1)
    for name in ("behavior", "pupil"):
        raw, result = (getattr(each, name).numpy().swapaxes(1, 2) for each in (clips, normalized))
        yield name, raw.astype(float), result


def test_the_baselines_z_score_video_and_pupil_and_divide_behavior_by_its_std(recording, clips):
    normalized = Normalization.fit(recording, BASELINE)(clips)
    for name, values, result in variables(clips, normalized):
        stack = train_stack(recording, name)
        centered = values if name == "behavior" else values - rows(np.nanmean(stack, 0), clips)
        np.testing.assert_allclose(result, centered / rows(np.nanstd(stack, 0), clips), rtol=1e-4, atol=1e-5)


def precision_by_hand(recording):
    std = np.nanstd(train_stack(recording, "responses"), 0)
    threshold = 0.01 * std.mean()
    return np.array([[1 / s if s > threshold else 1 / threshold for s in row] for row in std]), 1 / threshold


def test_responses_are_divided_by_the_std_of_each_neuron_and_frame_but_at_least_one_percent(recording, clips):
    normalized = Normalization.fit(recording, BASELINE)(clips)
    precision, largest = precision_by_hand(recording)
    assert (precision[:, 4] == largest).all()
    for row, frames in enumerate(clips.frames.tolist()):
        for column, frame in enumerate(frames):
            factor = precision[frame] if frame < TRAIN_FRAMES else largest
            np.testing.assert_allclose(
                normalized.responses[row, :, column],
                clips.responses[row, :, column].numpy() * factor,
                rtol=1e-5,
            )


def test_precision_is_one_over_the_threshold_where_std_is_small_or_unknown():
    std = torch.tensor([[4.0, 0.001, torch.nan], [2.0, 6.0, 3.0]], dtype=torch.float64)
    threshold = 0.01 * np.mean([4, 0.001, 2, 6, 3])
    expected = [[1 / 4, 1 / threshold, 1 / threshold], [1 / 2, 1 / 6, 1 / 3], [1 / threshold] * 3]
    np.testing.assert_allclose(response_precision(std), expected)


def test_silent_recordings_have_no_precision():
    with pytest.raises(ValueError, match=r"the mean std of the responses is 0.0, but must be above 0"):
        response_precision(torch.zeros(3, 2))


@pytest.mark.parametrize("config", [VIVIT_MIN_MAX, VIVIT_AS_RELEASED])
def test_vivit_scales_to_the_range_and_its_released_video_by_std_minus_mean(recording, clips, config):
    normalized = Normalization.fit(recording, config)(clips)
    for name, values, result in variables(clips, normalized):
        stack = train_stack(recording, name)
        low, high = np.nanmin(stack, 0), np.nanmax(stack, 0)
        if name == "video" and config is VIVIT_AS_RELEASED:
            low, high = np.nanmean(stack, 0), np.nanstd(stack, 0)
        expected = (values - rows(low, clips)) / rows(high - low, clips)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_dwiseneuro_sees_raw_values_and_responses_without_negatives(recording, clips):
    normalized = Normalization.fit(recording, DWISENEURO)(clips)
    assert torch.equal(normalized.video, clips.video.float())
    assert torch.equal(normalized.behavior, clips.behavior)
    assert torch.equal(normalized.pupil, clips.pupil)
    assert clips.responses.min() < 0
    assert torch.equal(normalized.responses, clips.responses.clamp(min=0))


def test_recomputed_statistics_equal_the_official_ones(recording):
    official = replace(VIVIT_MIN_MAX, statistics="official")
    tables = [Normalization.fit(recording, config).state_dict() for config in (official, VIVIT_MIN_MAX)]
    for name, table in tables[1].items():
        # Official statistics are padded; float32 rounds them.
        expected = tables[0][name]
        if name == "precision":
            expected = torch.cat([expected[:TRAIN_FRAMES], expected[-1:]])
        torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_predictions_convert_to_official_and_raw_units(recording, clips, name):
    normalization = Normalization.fit(recording, replace(NORMALIZATIONS[name], relu=False))
    trained_on = normalization(clips).responses
    official = Normalization.fit(recording, BASELINE)(clips).responses
    for converted, expected in (
        (normalization.to_official(trained_on, clips.frames), official),
        (normalization.to_raw(trained_on, clips.frames), clips.responses),
    ):
        torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_everything_is_finite_float32_and_the_raw_batch_is_untouched(recording, clips, name):
    before = [tensor.clone() for tensor in (clips.video, clips.behavior, clips.pupil, clips.responses)]
    normalized = Normalization.fit(recording, NORMALIZATIONS[name])(clips)
    for tensor in (normalized.video, normalized.behavior, normalized.pupil, normalized.responses):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    after = (clips.video, clips.behavior, clips.pupil, clips.responses)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_mean_response_is_the_mean_of_the_normalized_train_tier(recording):
    stack = train_stack(recording, "responses")
    precision, _ = precision_by_hand(recording)
    by_frame = np.nanmean(stack, axis=0)
    for config, expected in ((BASELINE, (by_frame * precision).mean(0)), (DWISENEURO, by_frame.mean(0))):
        mean_response = Normalization.fit(recording, config).mean_response
        np.testing.assert_allclose(mean_response, expected, rtol=1e-5)


def test_only_the_train_tier_is_fitted(recording):
    kept = [trial for trial in recording.trials if trial.tier == Tier.TRAIN]
    without = TinyRecording("mouse", kept, [recording.arrays[trial.index] for trial in kept])
    tables = [Normalization.fit(each, VIVIT_MIN_MAX).state_dict() for each in (recording, without)]
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


def test_withheld_responses_stay_none(recording, clips):
    assert Normalization.fit(recording, BASELINE)(replace(clips, responses=None)).responses is None


def test_a_normalization_can_be_rebuilt_from_its_state_without_the_recording(recording, clips):
    first = Normalization.fit(recording, BASELINE)
    second = Normalization("mouse", BASELINE, first.state_dict())
    assert torch.equal(first(clips).video, second(clips).video)
    assert torch.equal(first(clips).responses, second(clips).responses)
    assert not list(first.parameters())


def test_a_pixel_that_never_changes_is_not_divided_by_its_rounding_error():
    trials = [tiny_trial(index, 4) for index in range(3)]
    arrays = [tiny_arrays(trial, 2) for trial in trials]
    for values in arrays:
        values.video[:, 0, 0] = 7
    recording = TinyRecording("mouse", trials, arrays)
    video = Normalization.fit(recording, BASELINE)(cut_clips(recording, [(trials[0], 0)], num_frames=4)).video
    assert (video[..., 0, 0] == 0).all()
    assert video.abs().max() < 2


def test_statistics_with_a_hole_are_refused_by_name(recording):
    class Holed(TinyRecording):
        def statistics(self, variable, name):
            table = super().statistics(variable, name)
            if variable == "pupil_center":
                table[:, 3] = np.nan
            return table

    holed = Holed("mouse", recording.trials, list(recording.arrays.values()))
    with pytest.raises(ValueError, match="the statistics of pupil_center of mouse are known for 8 frames"):
        Normalization.fit(holed, BASELINE)


def test_recomputing_needs_labelled_train_trials():
    trials = [tiny_trial(0, 4, Tier.ORACLE)]
    recording = TinyRecording("mouse", trials, [tiny_arrays(trials[0], 2)])
    with pytest.raises(ValueError, match="mouse has no train trials with responses"):
        Normalization.fit(recording, VIVIT_MIN_MAX)


def test_clips_of_another_session_are_refused(recording, clips):
    with pytest.raises(ValueError, match="session is 'other', but must be 'mouse'"):
        Normalization.fit(recording, BASELINE)(replace(clips, session="other"))


def test_the_fixture_has_frames_beyond_the_statistics(clips):
    assert NUM_PADDED_FRAMES > int(clips.frames.max()) >= TRAIN_FRAMES


def test_the_default_normalization_leaves_inputs_raw_and_responses_official():
    assert NormalizationConfig().video == ScalingConfig(center="none", scale="none")
    assert NormalizationConfig().responses == "official"
