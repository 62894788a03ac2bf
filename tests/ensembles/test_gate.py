import logging
import math

import numpy as np
import pytest
from ensemble_pools import make_pool

from ensembles.gate import choose
from ensembles.intervals import jackknife, leave_one_out_sets, t_quantile


def test_unequal_members_open_the_gate(evidence):
    choice = choose(evidence)
    assert choice.blend == "simplex"
    assert not choice.forced
    assert choice.gate.is_open
    assert choice.weights.sum() == pytest.approx(1)
    held_out = evidence.score(choice.held_out_weights).pooled
    assert choice.gate.held_out == pytest.approx(held_out, abs=1e-9)
    assert choice.gate.mean < choice.gate.held_out <= choice.gate.in_sample


def test_members_that_differ_by_chance_keep_the_mean(gather_pool):
    pool = make_pool(neurons=(10,), videos=5, num_members=5, alter=_alike_only)
    choice = choose(gather_pool(pool))
    assert choice.blend == "mean"
    assert not choice.gate.is_open
    np.testing.assert_allclose(choice.weights, 0.2)


def _alike_only(rng, y, p):
    return y, {member: p["member-0"] + rng.normal(size=y.shape) for member in p}


def test_broken_members_are_dropped_and_named(evidence, caplog):
    with caplog.at_level(logging.WARNING):
        choice = choose(evidence, blend="mean")
    singles = [evidence.score(np.eye(6)[member]).pooled for member in range(6)]
    np.testing.assert_allclose(choice.single_scores, singles)
    broken = [
        m for m, score in zip(evidence.members, singles, strict=True) if score < 0.8 * np.median(singles)
    ]
    assert broken
    assert [each.member for each in choice.broken] == broken
    assert broken[0] in caplog.text
    np.testing.assert_allclose(
        choice.weights, [0 if member in broken else 1 / (6 - len(broken)) for member in evidence.members]
    )


def test_a_forced_blend_is_used_whatever_the_gate_says(gather_pool):
    choice = choose(gather_pool(make_pool(neurons=(10,), videos=5, alter=_alike_only)), blend="exhaustive")
    assert choice.forced
    assert choice.blend == "exhaustive"
    assert choice.gate is not None


def test_two_clips_are_too_few_to_judge(gather_pool):
    choice = choose(gather_pool(make_pool(videos=2)))
    assert choice.blend == "mean"
    assert "cannot be judged with 2 clips" in choice.gate.words


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=9)
    statistics = [np.average(values, weights=weights) for weights in leave_one_out_sets(9)]
    interval = jackknife(np.array(statistics))
    assert interval.value == pytest.approx(values.mean())
    assert interval.error == pytest.approx(values.std(ddof=1) / 3)
    assert interval.low == pytest.approx(values.mean() - 2.306004 * values.std(ddof=1) / 3, rel=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 11, 29, 30, 200])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.95, 0.975, 0.999])
def test_quantiles_of_t_are_those_of_scipy(degrees, probability):
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), abs=1e-8)


def test_one_clip_has_no_interval():
    interval = jackknife(np.array([0.5, 0.4]))
    assert math.isnan(interval.low)
    assert interval.lower_bound == -math.inf
