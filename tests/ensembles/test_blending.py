"""The contract of every blend."""

from itertools import combinations

import numpy as np
import pytest
from ensemble_pools import make_pool
from hypothesis import given
from hypothesis import strategies as st

from ensembles.blending import BLENDS, Blender, best_subset, greedy
from ensembles.clip_moments import ClipMoments
from ensembles.simplex import _quadratic_on_simplex, best_on_simplex

GROUPS = ["a", "a", "a", "b", "b", "c"]
CLIPS = range(6)


def fit(name, evidence, *, groups=GROUPS, clips=CLIPS):
    return Blender(name, evidence, groups=groups).fit(clips)


@pytest.mark.parametrize("name", BLENDS)
def test_weights_are_shares(name, evidence):
    for weights in fit(name, evidence).weights.values():
        assert weights.shape == (6,)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", BLENDS)
def test_the_order_of_members_does_not_matter(name, evidence):
    order = [3, 0, 5, 1, 4, 2]
    shuffled = evidence.only([evidence.members[place] for place in order])
    weights = fit(name, evidence).weights
    again = fit(name, shuffled, groups=[GROUPS[place] for place in order]).weights
    for session in evidence.sessions:
        np.testing.assert_allclose(again[session], weights[session][order], atol=1e-3)


@pytest.mark.parametrize("name", BLENDS)
def test_identical_members_predict_what_one_of_them_does(name, gather_pool):
    def same(_, y, p):
        return y, dict.fromkeys(p, p["member-0"])

    evidence = gather_pool(make_pool(alter=same, num_members=3, videos=4))
    blended = fit(name, evidence, groups=["a", "a", "b"], clips=range(4))
    found = evidence.score(blended.weights, scales=blended.scales).by_neuron
    for session, correlations in evidence.score(np.array([1.0, 0, 0])).by_neuron.items():
        np.testing.assert_allclose(found[session], correlations, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, blend in BLENDS.items() if blend.looks])
def test_what_looks_at_responses_is_at_least_as_good_where_it_looked(name, evidence):
    mean = evidence.score(np.full(6, 1 / 6)).pooled
    assert evidence.score(fit(name, evidence).weights).pooled > mean


@pytest.mark.parametrize("name", [name for name, blend in BLENDS.items() if blend.looks])
def test_clips_that_may_not_be_seen_are_not_seen(name, gather_pool):
    first, second = (
        gather_pool(make_pool(videos=4, alter=_other_last_video(seed), num_members=3)) for seed in (0, 1)
    )
    seen = [number for number, clip in enumerate(first.clips) if clip.name != "video-3"]
    groups = ["a", "a", "b"]
    once, again = (fit(name, e, groups=groups, clips=seen).weights for e in (first, second))
    for session in first.sessions:
        np.testing.assert_array_equal(once[session], again[session])


def _other_last_video(seed):
    calls = []

    def alter(_, y, p):
        calls.append(None)
        # Three repeats of each of four videos, for each session.
        last = (len(calls) - 1) % 12 >= 9
        rng = np.random.default_rng([seed, len(calls)])
        return (rng.normal(size=y.shape) if last else y), p

    return alter


def test_zscored_members_have_one_std_and_the_members_mean_scale(evidence):
    scales = fit("zscored", evidence).scales
    for session in evidence.sessions:
        std = evidence.standard_deviations(session)
        np.testing.assert_allclose(std * scales[session], np.tile(std.mean(axis=0), (6, 1)), rtol=1e-6)


def test_greedy_adds_what_a_plain_search_adds(evidence):
    pooled = ClipMoments.load(evidence).pool(CLIPS)
    counts, best, best_counts = np.zeros(6), -1.0, None
    for _ in range(8):
        scores = [evidence.score(counts + np.eye(6)[member]).pooled for member in range(6)]
        counts[int(np.argmax(scores))] += 1
        if max(scores) > best:
            best, best_counts = max(scores), counts.copy()
    np.testing.assert_allclose(greedy(pooled, rounds=8), best_counts / best_counts.sum())


def test_the_best_subset_is_that_of_a_plain_search(evidence):
    pooled = ClipMoments.load(evidence).pool(CLIPS)
    subsets = [c for size in (1, 2, 3) for c in combinations(range(6), size)]
    scores = [evidence.score(np.isin(range(6), subset).astype(float)).pooled for subset in subsets]
    assert best_subset(pooled, max_members=3) == (subsets[int(np.argmax(scores))], len(subsets))


def test_no_other_weights_beat_the_simplex(evidence):
    pooled = ClipMoments.load(evidence).pool(CLIPS)
    best = best_on_simplex(pooled, ridge=0.0)
    rng = np.random.default_rng(0)
    score = evidence.score(best).pooled
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(25):
            other = np.maximum(best + scale * rng.normal(size=6), 0)
            assert evidence.score(other).pooled <= score + 1e-7


def test_a_stronger_ridge_is_nearer_to_uniform_and_infinity_is_uniform(evidence):
    pooled = ClipMoments.load(evidence).pool(CLIPS)
    distances = [
        np.linalg.norm(best_on_simplex(pooled, ridge=ridge) - 1 / 6)
        for ridge in (0.0, 0.01, 0.1, 1.0, np.inf)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0


def test_pooled_scores_are_those_of_the_evidence(evidence):
    moments = ClipMoments.load(evidence)
    rng = np.random.default_rng(0)
    for clips in ([0], [1, 1, 4], list(CLIPS)):
        weights = rng.dirichlet(np.ones(6))
        assert moments.pool(clips).score(weights) == pytest.approx(
            evidence.score(weights, clips=clips).pooled, abs=1e-6
        )


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.floats(0.01, 10))
def test_the_quadratic_step_is_optimal_on_the_simplex(num_members, seed, scale):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(num_members, num_members))
    matrix = root @ root.T + 1e-3 * np.eye(num_members)
    linear = scale * rng.normal(size=num_members)
    start = rng.dirichlet(np.ones(num_members))
    found = _quadratic_on_simplex(matrix, linear, start)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    # Convex: nothing is better if no corner lies downhill.
    gradient = matrix @ found - linear
    assert ((np.eye(num_members) - found) @ gradient).min() >= -1e-9 * max(1, np.abs(gradient).max())


def test_unknown_blends_name_the_known_ones(evidence):
    with pytest.raises(ValueError, match="did you mean simplex"):
        Blender("simplx", evidence)
