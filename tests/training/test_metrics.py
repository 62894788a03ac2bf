import tracemalloc

import numpy as np
import pytest

from data.recording import Stimulus, Tier, Trial
from training.metrics import ScoreAccumulator, ScoreError, combine, count_repeats


def direct_scores(trials, first=50, stop=300):
    """Single trial and to average, from all data at once in float64."""
    predicted, responses = [], []
    repeats = {}
    for prediction, response, video in trials:
        missing = response.shape[1] - prediction.shape[1]
        p = prediction.astype(np.float64)[:, first - missing : stop - missing]
        r = response.astype(np.float64)[:, first:stop]
        predicted.append(p)
        responses.append(r)
        repeats.setdefault(video, []).append((p, r))
    mean_predicted, mean_responses = [], []
    for pairs in repeats.values():
        common = min(p.shape[1] for p, _ in pairs)
        p = np.stack([p[:, :common] for p, _ in pairs])
        r = np.stack([r[:, :common] for _, r in pairs])
        count = (~np.isnan(r)).sum(axis=0)
        nowhere = np.where(count == 0, np.nan, 1)
        mean_predicted.append(np.where(np.isnan(r), 0, p).sum(axis=0) / np.maximum(count, 1) * nowhere)
        mean_responses.append(np.nansum(r, axis=0) / np.maximum(count, 1) * nowhere)
    return _correlate(predicted, responses), _correlate(mean_predicted, mean_responses)


def _correlate(predicted, responses):
    predicted, responses = np.concatenate(predicted, axis=1), np.concatenate(responses, axis=1)
    result = []
    for p, r in zip(predicted, responses, strict=True):
        valid = ~np.isnan(r)
        result.append(np.corrcoef(p[valid], r[valid])[0, 1])
    return np.array(result)


def accumulate(trials, *, stimulus=Stimulus.MOVIE, **options):
    accumulator = ScoreAccumulator("mouse", len(trials[0][0]), **options)
    for index, (predicted, responses, video) in enumerate(trials):
        accumulator.update(predicted, responses, trial=index, video_id=video, stimulus=stimulus)
    return accumulator.result()


def make_trials(seed=0, *, num_neurons=6, frames=(300, 299, 306, 239, 300), videos="abacb", missing=0):
    rng = np.random.default_rng(seed)
    trials = []
    for num_frames, video in zip(frames, videos, strict=True):
        responses = rng.gamma(0.3, size=(num_neurons, num_frames)).astype(np.float32)
        predicted = (0.3 * responses + rng.normal(size=responses.shape)).astype(np.float32)
        trials.append((predicted[:, missing:], responses, video))
    return trials


@pytest.mark.parametrize("missing", [0, 18, 50])
def test_both_correlations_equal_numpy_on_all_data_at_once(missing):
    # Videos a (twice: 300 and 306 frames), b (299 and 300) and c (239, once): unequal repeats and lengths.
    trials = make_trials(missing=missing)
    score = accumulate(trials)
    single, average = direct_scores(trials)
    np.testing.assert_allclose(score.neurons.single_trial, single, atol=1e-12)
    np.testing.assert_allclose(score.neurons.to_average, average, atol=1e-12)
    assert score.neurons.num_frames == 250 + 249 + 250 + 189 + 250
    assert score.neurons.num_videos == 3


def hostile(kind, shape, rng):
    base = rng.normal(size=shape)
    time = np.arange(shape[1])
    return {
        "plain": lambda: base,
        "mean is 1e3 sd": lambda: base + 1e3,
        "mean is 1e5 sd": lambda: base + 1e5,
        "scale 1e-6": lambda: base * 1e-6,
        "scale 1e6": lambda: base * 1e6,
        "drift of 100 sd": lambda: base + 100 * time / shape[1],
        "step of 1000 sd": lambda: base + 1000 * (time > shape[1] // 2),
        "sparse spikes": lambda: np.where(rng.random(shape) < 0.01, 40 * base**2, 1e-9 * base),
        "lognormal": lambda: np.exp(3 * base),
    }[kind]().astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "mean is 1e3 sd",
        "mean is 1e5 sd",
        "scale 1e-6",
        "scale 1e6",
        "drift of 100 sd",
        "step of 1000 sd",
        "sparse spikes",
        "lognormal",
    ],
)
def test_hostile_data_stay_within_1e_6_of_float64(kind):
    rng = np.random.default_rng(1)
    trials = []
    for index in range(12):
        responses = hostile(kind, (5, 300), rng)
        noise = hostile(kind, (5, 300), rng)
        trials.append((responses + noise, responses, f"video {index % 4}"))
    score = accumulate(trials)
    single, average = direct_scores(trials)
    assert not score.neurons.constant.any()
    np.testing.assert_allclose(score.neurons.single_trial, single, atol=1e-6)
    np.testing.assert_allclose(score.neurons.to_average, average, atol=1e-6)


def test_nan_responses_are_left_out_of_both_correlations():
    trials = make_trials(frames=(120, 120, 120, 120, 121))
    rng = np.random.default_rng(3)
    for _, responses, _ in trials[1:]:
        responses[rng.random(responses.shape) < 0.2] = np.nan
    score = accumulate(trials)
    single, average = direct_scores(trials)
    np.testing.assert_allclose(score.neurons.single_trial, single, atol=1e-12)
    np.testing.assert_allclose(score.neurons.to_average, average, atol=1e-12)
    assert score.num_masked == sum(int(np.isnan(r[:, 50:]).sum()) for _, r, _ in trials)


def test_a_neuron_without_any_valid_frame_counts_as_constant():
    trials = make_trials()
    for _, responses, _ in trials:
        responses[2] = np.nan
    score = accumulate(trials)
    assert score.neurons.single_trial[2] == score.neurons.to_average[2] == 0
    assert list(np.flatnonzero(score.neurons.constant)) == [2]


def test_constant_neurons_score_0_and_are_counted():
    trials = make_trials(frames=(100, 100, 100, 100, 100))
    jitter = np.random.default_rng(0).choice([-1, 0, 1], size=(5, 100))
    for index, (predicted, responses, _) in enumerate(trials):
        predicted[0] = 0.1
        responses[1] = 0
        predicted[3] = np.float32(1.7) + jitter[index] * np.float32(1.2e-7)  # rounding noise of a dead unit
    score = combine({"mouse": accumulate(trials)})
    neurons = accumulate(trials).neurons
    assert list(np.flatnonzero(neurons.constant)) == [0, 1, 3]
    assert np.all(neurons.single_trial[[0, 1, 3]] == 0)
    assert np.all(neurons.single_trial[[2, 4, 5]] > 0.05)
    assert score.num_constant == 3
    assert score.num_neurons == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_an_error_that_names_session_trial_and_neuron(bad):
    trials = make_trials()
    trials[1][0][4, 60] = bad
    with pytest.raises(
        ScoreError, match=r"mouse: trial 1: the prediction of neuron 4 is (nan|inf) at frame 60"
    ):
        accumulate(trials)


def test_a_prediction_that_is_not_finite_in_the_burn_in_does_not_matter():
    trials = make_trials()
    expected = accumulate(trials).neurons.single_trial
    trials[1][0][4, 49] = np.nan
    np.testing.assert_array_equal(accumulate(trials).neurons.single_trial, expected)


def test_an_infinite_response_is_an_error():
    trials = make_trials()
    trials[0][1][0, 70] = np.inf
    with pytest.raises(ScoreError, match="response of neuron 0 is infinite at frame 70"):
        accumulate(trials)


def test_predictions_that_miss_scored_frames_are_refused():
    with pytest.raises(
        ScoreError, match="last 249 of 300 frames, but must have them for at least the last 250"
    ):
        accumulate(make_trials(missing=51))
    accumulate(make_trials(missing=51), burn_in_frames=51)


def test_a_trial_shorter_than_the_burn_in_is_refused():
    with pytest.raises(ScoreError, match="has 50 frames, but must have more than 50"):
        accumulate(make_trials(frames=(50,), videos="a"))


def test_a_wrong_number_of_neurons_or_a_second_visit_is_refused():
    accumulator = ScoreAccumulator("mouse", 3)
    values = np.random.default_rng(0).normal(size=(4, 60))
    with pytest.raises(ScoreError, match="responses of 4 neurons, but must have 3"):
        accumulator.update(values, values, trial=0, video_id="a", stimulus=Stimulus.MOVIE)
    accumulator.update(values[:3], values[:3], trial=0, video_id="a", stimulus=Stimulus.MOVIE)
    with pytest.raises(ScoreError, match="trial 0 came twice"):
        accumulator.update(values[:3], values[:3], trial=0, video_id="a", stimulus=Stimulus.MOVIE)


def test_nothing_scored_is_an_error_and_not_a_score_of_0():
    with pytest.raises(ScoreError, match="no trial was scored"):
        ScoreAccumulator("mouse", 3).result()
    with pytest.raises(ScoreError, match="at least one session"):
        combine({})


def test_announced_repeats_give_the_same_score():
    trials = make_trials()
    free = accumulate(trials)
    announced = accumulate(trials, repeats={"a": 2, "b": 2, "c": 1})
    np.testing.assert_allclose(announced.neurons.to_average, free.neurons.to_average, atol=1e-14)
    assert announced.neurons.num_videos == 3


def test_missing_superfluous_and_unknown_repeats_are_refused():
    trials = make_trials()
    with pytest.raises(ScoreError, match="2 repeats of a were scored, but must be 3"):
        accumulate(trials, repeats={"a": 3, "b": 2, "c": 1})
    with pytest.raises(ScoreError, match="trial 2 is one repeat of a too many"):
        accumulate(trials, repeats={"a": 1, "b": 2, "c": 1})
    with pytest.raises(ScoreError, match="trial 3 shows c, which was not announced"):
        accumulate(trials, repeats={"a": 2, "b": 2})


def test_a_result_may_be_asked_for_in_between():
    trials = make_trials()
    accumulator = ScoreAccumulator("mouse", 6)
    for index, (predicted, responses, video) in enumerate(trials):
        accumulator.update(predicted, responses, trial=index, video_id=video, stimulus=Stimulus.MOVIE)
        single, average = direct_scores(trials[: index + 1])
        np.testing.assert_allclose(accumulator.result().neurons.single_trial, single, atol=1e-12)
        np.testing.assert_allclose(accumulator.result().neurons.to_average, average, atol=1e-12)


def test_classes_are_scored_alone_and_the_bonus_is_their_mean():
    shown = {
        "m1": {Stimulus.MOVIE: make_trials(1), Stimulus.GABOR: make_trials(2)},
        "m2": {
            Stimulus.GABOR: make_trials(3, num_neurons=2),
            Stimulus.IMAGES: make_trials(4, num_neurons=2),
        },
    }
    scores = {}
    for session, classes in shown.items():
        accumulator = ScoreAccumulator(session, len(next(iter(classes.values()))[0][0]))
        index = 0
        for stimulus, trials in classes.items():
            for predicted, responses, video in trials:
                video_id = f"{stimulus}-{video}"
                accumulator.update(predicted, responses, trial=index, video_id=video_id, stimulus=stimulus)
                index += 1
        scores[session] = accumulator.result()
    score = combine(scores)
    gabor, _ = zip(*(direct_scores(shown[s][Stimulus.GABOR]) for s in shown), strict=True)
    images, images_average = direct_scores(shown["m2"][Stimulus.IMAGES])
    assert score.by_stimulus[Stimulus.GABOR].single_trial == pytest.approx(np.concatenate(gabor).mean())
    assert score.by_stimulus[Stimulus.IMAGES].single_trial == pytest.approx(images.mean())
    assert score.by_stimulus[Stimulus.IMAGES].to_average == pytest.approx(images_average.mean())
    expected = (np.concatenate(gabor).mean() + images.mean()) / 2
    assert score.bonus is not None
    assert score.bonus.single_trial == pytest.approx(expected)
    # All trials of a session together, whatever they showed, pooled over 6 and 2 neurons.
    everything = []
    for classes in shown.values():
        together = [(p, r, f"{s}-{v}") for s, trials in classes.items() for p, r, v in trials]
        everything.append(direct_scores(together))
    assert score.single_trial == pytest.approx(np.concatenate([single for single, _ in everything]).mean())
    assert score.to_average == pytest.approx(np.concatenate([average for _, average in everything]).mean())
    assert score.by_session["m2"].single_trial == pytest.approx(everything[1][0].mean())


def test_without_unusual_stimuli_there_is_no_bonus():
    assert combine({"mouse": accumulate(make_trials())}).bonus is None


def test_the_score_does_not_change_with_a_scale_per_neuron():
    trials = make_trials()
    scale = np.array([1e-4, 1, 3, 50, 1e3, 7], dtype=np.float64)[:, None]
    scaled = [(predicted * scale, responses * scale, video) for predicted, responses, video in trials]
    np.testing.assert_allclose(
        accumulate(scaled).neurons.single_trial, accumulate(trials).neurons.single_trial, atol=1e-12
    )


def test_the_starter_kits_formula_gives_the_same_score():
    trials = make_trials()
    p = np.concatenate([predicted[:, 50:300] for predicted, _, _ in trials], axis=1).astype(np.float64)
    r = np.concatenate([responses[:, 50:300] for _, responses, _ in trials], axis=1).astype(np.float64)
    p = (p - p.mean(axis=1, keepdims=True)) / (p.std(axis=1, keepdims=True) + 1e-8)
    r = (r - r.mean(axis=1, keepdims=True)) / (r.std(axis=1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(accumulate(trials).neurons.single_trial, (p * r).mean(axis=1), atol=1e-6)


def test_trials_stored_in_half_precision_are_summed_in_double():
    trials = [(p.astype(np.float16), r.astype(np.float16), v) for p, r, v in make_trials()]
    single, _ = direct_scores(trials)
    np.testing.assert_allclose(accumulate(trials).neurons.single_trial, single, atol=1e-12)


def test_repeats_are_counted_by_video():
    trials = [
        Trial(
            index=index,
            tier=Tier.ORACLE,
            num_frames=300,
            video_id=video,
            stimulus=Stimulus.MOVIE,
            has_responses=True,
        )
        for index, video in enumerate("abaac")
    ]
    assert count_repeats(trials) == {"a": 3, "b": 1, "c": 1}


def test_memory_holds_the_open_videos_and_not_the_trials():
    num_neurons, num_frames, num_videos = 200, 300, 3
    rng = np.random.default_rng(0)
    values = rng.normal(size=(num_neurons, num_frames)).astype(np.float32)
    tracemalloc.start()
    accumulator = ScoreAccumulator("mouse", num_neurons, repeats={f"v{i}": 10 for i in range(num_videos)})
    for trial in range(30):
        video_id = f"v{trial % num_videos}"
        accumulator.update(values, values, trial=trial, video_id=video_id, stimulus=Stimulus.MOVIE)
    accumulator.result()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    open_videos = num_videos * 2 * num_neurons * (num_frames - 50) * 8
    assert peak < open_videos + 6 * num_neurons * num_frames * 8


@pytest.mark.parametrize(
    "options", [{"burn_in_frames": -1}, {"burn_in_frames": 300}, {"last_frame": 50}, {"num_neurons": 0}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="but must"):
        ScoreAccumulator("mouse", options.pop("num_neurons", 3), **options)
