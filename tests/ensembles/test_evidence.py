import numpy as np
import pytest
from ensemble_pools import accumulated_score, direct_scores, make_pool

from ensembles.evidence import METRICS, gather

pytestmark = pytest.mark.usefixtures("quick_disk")
TOLERANCE = 1e-6


def gathered(pool, tmp_path, **options):
    store = pool.store(tmp_path / "predictions")
    evidence = gather(
        store, pool.members, pool.recordings, tier="oracle", folder=tmp_path / "evidence", **options
    )
    return store, evidence


def assert_exact(pool, store, evidence, *, seed=0, tolerance=TOLERANCE, signed=False):
    rng = np.random.default_rng(seed)
    names = [clip.name for clip in evidence.clips]
    for clips in (None, [0], rng.integers(0, len(names), 6).tolist()):
        weights = rng.dirichlet(np.ones(len(pool.members)))
        if signed:
            weights *= rng.choice([-1, 1], len(weights))
        for metric in METRICS:
            found = evidence.score(weights, clips=clips, metric=metric).by_neuron
            videos = None if clips is None else [names[number] for number in clips]
            wanted = direct_scores(pool, store, weights, clips=videos, metric=metric)
            for session, correlations in wanted.items():
                np.testing.assert_allclose(found[session], correlations, atol=tolerance, rtol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_scores_are_those_of_the_weighted_mean_itself(tmp_path, signed):
    pool = make_pool()
    store, evidence = gathered(pool, tmp_path)
    assert_exact(pool, store, evidence, signed=signed)


def everywhere(change):
    return lambda rng, y, p: (change(rng, y), {member: change(rng, values) for member, values in p.items()})


HOSTILE = {
    "mean of 1e3": everywhere(lambda _, x: x + 1e3),
    "mean of 1e5": everywhere(lambda _, x: x + 1e5),
    "scale of 1e-6": everywhere(lambda _, x: 1e-6 * x),
    "scale of 1e5": everywhere(lambda _, x: 1e5 * x),
    "drift of 100 sd": everywhere(lambda _, x: x + np.linspace(0, 100, x.shape[1])),
    "steps between trials": everywhere(lambda rng, x: x + 1000 * rng.normal()),
    "sparse spikes": everywhere(lambda rng, x: np.where(rng.random(x.shape) < 0.02, 300 * x, 1e-9)),
    "heavy tails": lambda rng, y, p: (np.exp(3 * rng.normal(size=y.shape)), p),
    "unequal scales": lambda _, y, p: (
        y,
        {member: values * 10.0 ** (3 * place - 4) for place, (member, values) in enumerate(p.items())},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_scores_stay_exact_for_hostile_data(tmp_path, name):
    pool = make_pool(alter=HOSTILE[name], seed=3, num_frames=140)
    store, evidence = gathered(pool, tmp_path)
    assert_exact(pool, store, evidence, seed=1)


def _with_gaps(rng, y, p):
    y = y.copy()
    y[rng.random(y.shape) < 0.1] = np.nan
    y[0, 60:] = np.nan
    y[1] = np.nan
    return y, p


def test_missing_responses_are_masked_for_all_members(tmp_path):
    pool = make_pool(alter=_with_gaps)
    store, evidence = gathered(pool, tmp_path)
    assert_exact(pool, store, evidence)
    for recording in pool.recordings:
        gaps = sum(np.isnan(recording.responses(trial)[:, 50:]).sum() for trial in recording.trials)
        assert evidence.num_masked[recording.session] == gaps
        assert evidence.score(np.ones(4)).constant[recording.session][1]


def _with_flat(rng, y, p):
    y = y.copy()
    y[2] = 0.1
    return y, {
        m: np.where(np.arange(len(v))[:, None] == 3, 0.7, v) if m == "member-1" else v for m, v in p.items()
    }


def test_constant_neurons_score_0_and_are_counted(tmp_path):
    pool = make_pool(alter=_with_flat)
    store, evidence = gathered(pool, tmp_path)
    assert_exact(pool, store, evidence)
    only_second = evidence.score(np.eye(4)[1])
    assert only_second.num_constant == 4
    for session, correlations in only_second.by_neuron.items():
        assert correlations[2] == 0
        assert correlations[3] == 0
        assert np.flatnonzero(only_second.constant[session]).tolist() == [2, 3]


@pytest.mark.parametrize("alter", [None, _with_gaps])
def test_scores_agree_with_the_accumulator_of_training(tmp_path, alter):
    pool = make_pool(alter=alter)
    store, evidence = gathered(pool, tmp_path)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for recording in pool.recordings:
        wanted = accumulated_score(pool, store, weights, recording)
        for metric in METRICS:
            score = evidence.score(weights, metric=metric)
            np.testing.assert_allclose(
                score.by_neuron[recording.session], getattr(wanted.neurons, metric), atol=TOLERANCE
            )
        assert evidence.num_masked[recording.session] == wanted.num_masked
