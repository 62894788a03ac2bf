import math

import numpy as np
import pytest
import torch

from training.schedules import (
    VIVIT_SCHEDULE,
    Decision,
    EpochCosineConfig,
    PlateauConfig,
    StepCosineConfig,
)


def make_optimizer(rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def run(config, scores, *, rate=1.0):
    """Return for each epoch its rate and the decision after it; ends with a stop."""
    schedule = config.build(epochs=len(scores), steps_per_epoch=10)
    history = []
    for epoch, score in enumerate(scores):
        factor = schedule.rate_factor(10 * epoch, epoch)
        decision = schedule.end_epoch(score)
        history.append((rate * factor, decision))
        if decision.stop:
            break
    return history


def test_baseline_restores_on_the_5th_bad_epoch_and_lowers_the_rate_after_the_6th():
    history = run(PlateauConfig(), [0.1] + [0.0] * 40, rate=5e-3)
    restored = [epoch for epoch, (_, decision) in enumerate(history) if decision.restore_best]
    assert restored == [5, 10, 15, 20]  # four rounds; epoch 0 was the best
    assert history[-1][1].stop
    rates = [rate for rate, _ in history]
    np.testing.assert_allclose(rates[:7], 5e-3)
    np.testing.assert_allclose(rates[7:13], 1.5e-3)
    np.testing.assert_allclose(rates[13:19], 4.5e-4)
    np.testing.assert_allclose(rates[19:], 1.35e-4)


def test_the_published_rates_end_at_the_floor():
    config = PlateauConfig(plateaus=100)
    rates = [rate for rate, _ in run(config, [0.1] + [0.0] * 60, rate=5e-3)]
    assert list(dict.fromkeys(np.round(rates, 9))) == [5e-3, 1.5e-3, 4.5e-4, 1.35e-4, 1e-4]


@pytest.mark.parametrize("seed", range(5))
def test_baseline_rates_are_those_of_torchs_reduction_on_plateau(seed):
    rng = np.random.default_rng(seed)
    scores = np.maximum.accumulate(rng.normal(size=80)) - (rng.random(80) < 0.7) * rng.random(80) * 0.1
    optimizer = make_optimizer(5e-3)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.3, patience=5, threshold=1e-6, threshold_mode="abs", min_lr=1e-4
    )
    schedule = PlateauConfig().build(epochs=80, steps_per_epoch=1)
    for epoch, score in enumerate(scores):
        assert 5e-3 * schedule.rate_factor(epoch, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        schedule.end_epoch(float(score))
        reference.step(score)


@pytest.mark.parametrize("seed", range(5))
def test_baseline_rounds_are_those_of_the_starter_kit(seed):
    rng = np.random.default_rng(seed)
    scores = [float(score) for score in np.cumsum(rng.normal(0.05, 1, size=200))]
    # The starter kit's nested loops: rounds of waiting for 5 epochs without improvement.
    best, epoch, restored = -math.inf, 0, []
    for _ in range(4):
        waited = 0
        while waited < 5:
            if scores[epoch] > best + 1e-6:
                best, waited = scores[epoch], 0
            else:
                waited += 1
            epoch += 1
        restored.append(epoch - 1)
    history = run(PlateauConfig(), scores)
    assert [e for e, (_, decision) in enumerate(history) if decision.restore_best] == restored
    assert len(history) == epoch


def test_an_improvement_must_exceed_the_tolerance():
    schedule = PlateauConfig().build(epochs=9, steps_per_epoch=1)
    decisions = [schedule.end_epoch(score) for score in (0.1, 0.1 + 5e-7, 0.1 + 2e-6)]
    assert [decision.improved for decision in decisions] == [True, False, True]


def test_vivit_restores_and_lowers_the_rate_twice_and_stops_at_the_third_plateau():
    history = run(VIVIT_SCHEDULE, [0.2] + [0.1] * 40, rate=0.0048)
    assert [e for e, (_, decision) in enumerate(history) if decision.restore_best] == [5, 10, 15]
    assert len(history) == 16
    np.testing.assert_allclose([rate for rate, _ in history[:6]], 0.0048)
    np.testing.assert_allclose([rate for rate, _ in history[6:11]], 0.0048 * 0.3)
    np.testing.assert_allclose([rate for rate, _ in history[11:]], 0.0048 * 0.09)


def test_vivit_counts_plateaus_again_after_an_improvement_but_keeps_the_rate():
    scores = [0.2] + [0.1] * 10 + [0.3] + [0.1] * 40
    history = run(VIVIT_SCHEDULE, scores)
    assert len(history) == 12 + 15
    assert history[-1][0] == pytest.approx(0.3**4)


def test_a_collapse_restores_and_does_not_count_as_waiting():
    schedule = VIVIT_SCHEDULE.build(epochs=99, steps_per_epoch=1)
    assert schedule.end_epoch(0.05).improved
    for _ in range(20):
        assert schedule.end_epoch(0.004) == Decision(improved=False, restore_best=True)
    assert schedule.rate_factor(0, 0) == 1
    assert not schedule.end_epoch(0.006).restore_best


def test_a_low_score_is_no_collapse_before_anything_was_learned():
    schedule = VIVIT_SCHEDULE.build(epochs=99, steps_per_epoch=1)
    schedule.end_epoch(0.04)
    assert schedule.end_epoch(-0.01) == Decision(improved=False)


def test_epoch_cosine_is_warm_up_times_constant_and_torchs_cosine():
    config = EpochCosineConfig()
    schedule = config.build(epochs=180, steps_per_epoch=100)
    optimizer = make_optimizer(1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=1e-6)
    for epoch in range(180):
        rate = 1e-3 if epoch < 80 else optimizer.param_groups[0]["lr"]
        for step in (100 * epoch, 100 * epoch + 99):
            warmup = 1 - (1 - step / 600) * 2 / 3 if step < 600 else 1
            assert 1e-3 * schedule.rate_factor(step, epoch) == pytest.approx(rate * warmup, rel=1e-9)
        if epoch >= 80:
            optimizer.step()
            cosine.step()
    assert 1e-3 * schedule.rate_factor(0, 0) == pytest.approx(1e-3 / 3)


def test_step_cosine_starts_at_0_and_equals_torchs_sequence():
    schedule = StepCosineConfig().build(epochs=21, steps_per_epoch=7)
    warmup = 3 * 7
    rising, falling = make_optimizer(2.4e-3), make_optimizer(2.4e-3)
    phases = [
        (0, warmup, rising, torch.optim.lr_scheduler.LambdaLR(rising, lambda done: done / warmup)),
        (
            warmup,
            21 * 7,
            falling,
            torch.optim.lr_scheduler.CosineAnnealingLR(falling, T_max=18 * 7, eta_min=2.4e-5),
        ),
    ]
    for first, last, optimizer, reference in phases:
        for step in range(first, last):
            expected = optimizer.param_groups[0]["lr"]
            assert 2.4e-3 * schedule.rate_factor(step, step // 7) == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            reference.step()
    assert schedule.rate_factor(0, 0) == 0
    assert schedule.rate_factor(warmup, 3) == 1


@pytest.mark.parametrize("config", [EpochCosineConfig(constant_epochs=2), StepCosineConfig(warmup_epochs=1)])
def test_fixed_schedules_keep_the_last_epoch_and_never_stop(config):
    history = run(config, [0.2, 0.1, 0.3, 0.0])
    assert [decision for _, decision in history] == [
        Decision(improved=True),
        Decision(improved=False),
        Decision(improved=True),
        Decision(improved=False),
    ]
    assert config.keep == "last"
    assert PlateauConfig().keep == "best"


@pytest.mark.parametrize(
    "config", [PlateauConfig(), VIVIT_SCHEDULE, EpochCosineConfig(constant_epochs=5), StepCosineConfig()]
)
def test_a_resumed_schedule_goes_on_as_if_uninterrupted(config):
    scores = [float(score) for score in np.random.default_rng(0).normal(size=30)]
    whole = run(config, scores)
    for cut in range(1, len(whole)):
        first = config.build(epochs=30, steps_per_epoch=10)
        for score in scores[:cut]:
            first.end_epoch(score)
        resumed = config.build(epochs=30, steps_per_epoch=10)
        resumed.load_state_dict(first.state_dict())
        for epoch in range(cut, len(whole)):
            assert (resumed.rate_factor(10 * epoch, epoch), resumed.end_epoch(scores[epoch])) == whole[epoch]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", [PlateauConfig(), StepCosineConfig()])
def test_a_score_that_is_no_number_is_an_error(config, score):
    with pytest.raises(ValueError, match="the run has failed"):
        config.build(epochs=9, steps_per_epoch=1).end_epoch(score)


@pytest.mark.parametrize("config", [EpochCosineConfig(), StepCosineConfig(warmup_epochs=80)])
def test_a_run_too_short_for_its_schedule_is_refused(config):
    with pytest.raises(ValueError, match="epochs is 80, but must be less than the run's 80 epochs"):
        config.build(epochs=80, steps_per_epoch=1)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (PlateauConfig, {"patience": 0}),
        (PlateauConfig, {"plateaus": 0}),
        (PlateauConfig, {"factor": 1.0}),
        (PlateauConfig, {"rate_patience": -1}),
        (PlateauConfig, {"min_factor": 2.0}),
        (PlateauConfig, {"tolerance": -1.0}),
        (PlateauConfig, {"collapse_below": 0.1}),
        (EpochCosineConfig, {"warmup_steps": -1}),
        (EpochCosineConfig, {"final_factor": 1.5}),
        (StepCosineConfig, {"warmup_epochs": -1}),
        (StepCosineConfig, {"final_factor": -0.1}),
    ],
)
def test_impossible_schedules_are_refused(config, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is .*, but must be"):
        config(**bad)
