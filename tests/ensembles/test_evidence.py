import logging
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from ensemble_pools import accumulated_score, direct_scores, make_pool
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ensembles.evidence_pass
from ensembles.evidence import METRICS, Evidence, EvidenceError, block_path
from ensembles.evidence_pass import gather
from training.metrics import ScoreAccumulator
from training.prediction_info import PredictionError
from training.predictions import PredictionStore
from training.scored_frames import ScoreError

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


def test_only_frames_that_all_members_predict_are_scored(tmp_path):
    windows = {"member-0": (50, 90), "member-1": (40, 88), "member-2": (53, 90)}
    pool = make_pool(num_members=3, windows=windows)
    store, evidence = gathered(pool, tmp_path)
    assert_exact(pool, store, evidence)


def test_repeats_of_unequal_number_and_length_are_scored_as_training_does(tmp_path):
    pool = make_pool(repeats=4)
    for recording in pool.recordings:
        # The first video loses two repeats, the second is a frame shorter in one of its repeats.
        kept = [trial for trial in recording.trials if trial.index > 1]
        recording.trials = tuple(
            replace(trial, num_frames=89) if trial.index == 5 else trial for trial in kept
        )
        recording._responses[5] = recording._responses[5][:, :89]
        for member in pool.members:
            pool.predicted[recording.session][member][5] = pool.predicted[recording.session][member][5][
                :, :-1
            ]
    store, evidence = gathered(pool, tmp_path)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for recording in pool.recordings:
        wanted = accumulated_score(pool, store, weights, recording).neurons
        for metric in METRICS:
            found = evidence.score(weights, metric=metric).by_neuron[recording.session]
            np.testing.assert_allclose(found, getattr(wanted, metric), atol=TOLERANCE)


def test_videos_shown_once_score_the_same_both_ways(tmp_path):
    _, evidence = gathered(make_pool(repeats=1), tmp_path)
    single, average = (evidence.score(np.ones(4), metric=metric).pooled for metric in METRICS)
    assert single == average


def test_scales_are_factors_of_predictions(tmp_path):
    pool = make_pool()
    store, evidence = gathered(pool, tmp_path)
    rng = np.random.default_rng(0)
    scales = {
        recording.session: rng.uniform(0.1, 10, (4, len(recording.neurons.ids))).astype(np.float32)
        for recording in pool.recordings
    }
    weights = rng.dirichlet(np.ones(4))
    found = evidence.score(weights, scales=scales).by_neuron
    for session, wanted in direct_scores(pool, store, weights, scales=scales).items():
        np.testing.assert_allclose(found[session], wanted, atol=TOLERANCE)


def test_weights_may_differ_between_clips_and_sessions(tmp_path):
    pool = make_pool()
    store, evidence = gathered(pool, tmp_path)
    rng = np.random.default_rng(0)
    weights = {session: rng.dirichlet(np.ones(4), size=3) for session in evidence.sessions}
    found = evidence.score(weights)
    for recording in pool.recordings:
        numbers = {clip.name: number for number, clip in enumerate(evidence.clips)}
        accumulator = ScoreAccumulator(recording.session, len(recording.neurons.ids))
        for trial in recording.trials:
            of_clip = weights[recording.session][numbers[trial.video_id]]
            parts = [store.open(m, recording.session, "oracle").trial(trial.index) for m in pool.members]
            accumulator.update(
                sum(w * part.astype(np.float64) for w, part in zip(of_clip, parts, strict=True)),
                recording.responses(trial),
                trial=trial.index,
                video_id=trial.video_id,
                stimulus=trial.stimulus,
            )
        wanted = accumulator.result().neurons.single_trial
        np.testing.assert_allclose(found.by_neuron[recording.session], wanted, atol=TOLERANCE)


def test_many_scores_at_once_are_the_scores_one_by_one(evidence):
    rng = np.random.default_rng(0)
    weightings = [rng.dirichlet(np.ones(6)) for _ in range(3)]
    sets = np.array([[1, 1, 1, 1, 1, 1], [0, 2, 0, 0, 1, 0]])
    scores = evidence.score_sets(weightings, sets)
    for q, times in enumerate(sets):
        clips = np.repeat(np.arange(6), times)
        for w, weights in enumerate(weightings):
            wanted = evidence.score(weights, clips=clips.tolist())
            assert scores.pooled[q, w] == pytest.approx(wanted.pooled, abs=1e-12)
            np.testing.assert_allclose(scores.by_session[:, q, w], list(wanted.by_session.values()))


def test_some_members_score_as_if_only_they_had_been_gathered(tmp_path):
    pool = make_pool()
    store, evidence = gathered(pool, tmp_path)
    some = ["member-2", "member-0"]
    alone = gather(store, some, pool.recordings, tier="oracle", folder=tmp_path / "alone")
    weights = np.array([0.3, 0.7])
    for metric in METRICS:
        found = evidence.only(some).score(weights, metric=metric)
        assert found.pooled == pytest.approx(alone.score(weights, metric=metric).pooled, abs=1e-7)


def test_too_many_videos_become_groups_that_are_never_divided(tmp_path):
    pool = make_pool(videos=7, repeats=1)
    store, evidence = gathered(pool, tmp_path, max_clips=4)
    assert sorted(video for clip in evidence.clips for video in clip.video_ids) == [
        f"video-{number}" for number in range(7)
    ]
    assert [str(clip.stimulus) for clip in evidence.clips] == ["gabor", *["movie"] * 4]
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    for session, wanted in direct_scores(pool, store, weights).items():
        np.testing.assert_allclose(evidence.score(weights).by_neuron[session], wanted, atol=TOLERANCE)


def test_blocks_and_threads_change_nothing_that_counts(tmp_path):
    pool = make_pool(neurons=(300,), repeats=2)
    store, evidence = gathered(pool, tmp_path)
    other = gather(
        store,
        pool.members,
        pool.recordings,
        tier="oracle",
        folder=tmp_path / "other",
        memory_bytes=1,
        threads=1,
    )
    assert other.block == 128 < evidence.block
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(
        evidence.score(weights).by_neuron["mouse-0"], other.score(weights).by_neuron["mouse-0"], atol=1e-7
    )


def _die_in_the_second_block(root, store_root, pool):
    blocks = []

    def gather_block(reader, neurons, folder, original=ensembles.evidence_pass._gather_block):
        blocks.append(neurons)
        if len(blocks) == 2:
            # In the middle of writing, what is there already under a temporary name.
            path = block_path(folder, reader.plan.recording.session, neurons.start)
            path.with_name(f"{path.name}.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        original(reader, neurons, folder)

    ensembles.evidence_pass._gather_block = gather_block
    store = PredictionStore(root=store_root)
    gather(store, pool.members, pool.recordings, tier="oracle", folder=root, memory_bytes=1, threads=1)


def test_a_killed_pass_continues_with_the_block_it_was_at(tmp_path, caplog):
    pool = make_pool(neurons=(300,), repeats=2)
    store = pool.store(tmp_path / "predictions")
    folder = tmp_path / "evidence"
    process = multiprocessing.get_context("fork").Process(
        target=_die_in_the_second_block, args=(folder, store.root, pool)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(EvidenceError, match=r"holds no complete evidence .* gather again"):
        Evidence.open(folder)
    with caplog.at_level(logging.INFO):
        evidence = gather(
            store, pool.members, pool.recordings, tier="oracle", folder=folder, memory_bytes=1, threads=1
        )
    assert "2 of 3 blocks to gather" in caplog.text
    assert_exact(pool, store, evidence)


def test_complete_evidence_is_opened_and_that_of_other_predictions_is_replaced(tmp_path, caplog):
    pool = make_pool()
    store, evidence = gathered(pool, tmp_path)
    path = tmp_path / "evidence" / "mouse-0" / "block-000000.npy"
    before = path.stat().st_mtime_ns
    again = gather(store, pool.members, pool.recordings, tier="oracle", folder=evidence.folder)
    assert path.stat().st_mtime_ns == before
    assert again.fingerprint == evidence.fingerprint
    other = make_pool(seed=1)
    for member in pool.members:
        pool.predicted["mouse-0"][member] = other.predicted["mouse-0"][member]
        store.path(member, "mouse-0", "oracle").with_suffix(".json").unlink()
        pool.write(store, pool.recordings[0], member)
    with caplog.at_level(logging.INFO):
        replaced = gather(store, pool.members, pool.recordings, tier="oracle", folder=evidence.folder)
    assert "is replaced" in caplog.text
    assert replaced.fingerprint != evidence.fingerprint
    assert_exact(pool, store, replaced)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_neurons": 4}, "num_neurons is 5 in member-0 and 4 in member-1"),
        ({"neurons_sha256": "other"}, "neurons_sha256 is n in member-0 and other in member-1"),
        ({"fingerprint": "other"}, "fingerprint is data of mouse-0 in member-0 and other in member-1"),
        ({"units": "raw"}, "units is response_std in member-0 and raw in member-1"),
        ({"trials": tuple(range(8, -1, -1))}, r"trials is \(0, 1, .* in member-0 and \(8, 7, .* in member-1"),
    ],
)
def test_members_of_other_data_are_refused_naming_both(tmp_path, change, named):
    pool = make_pool(neurons=(5,))
    store = pool.store(tmp_path / "predictions")
    recording = pool.recordings[0]
    if "num_neurons" in change:
        of = pool.predicted["mouse-0"]["member-1"]
        pool.predicted["mouse-0"]["member-1"] = {trial: values[:4] for trial, values in of.items()}
    store.path("member-1", "mouse-0", "oracle").with_suffix(".json").unlink()
    pool.write(store, recording, "member-1", **change)
    with pytest.raises(PredictionError, match=named):
        gather(store, pool.members, [recording], tier="oracle", folder=tmp_path / "evidence")


def test_predictions_of_another_recording_are_refused(tmp_path):
    pool = make_pool(neurons=(5,))
    store = pool.store(tmp_path / "predictions")
    pool.recordings[0].fingerprint = "converted anew"
    with pytest.raises(PredictionError, match=r"data data of mous.*, but the recording is converted"):
        gather(store, pool.members, pool.recordings, tier="oracle", folder=tmp_path / "evidence")


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "is nan"), (np.inf, "is inf"), (-np.inf, "is -inf")])
def test_a_prediction_that_is_no_number_is_named(tmp_path, bad, words):
    pool = make_pool()
    store = pool.store(tmp_path / "predictions")
    # Behind the writer's back, which refuses it: a damaged file.
    values = np.load(store.path("member-2", "mouse-1", "oracle"), mmap_mode="r+")
    values[4, 3, 10] = bad
    values.flush()
    message = (
        rf"member-2: trial 4 of mouse-1: the prediction of neuron 3 {words} at frame 60, but must be finite"
    )
    with pytest.raises(PredictionError, match=message):
        gather(store, pool.members, pool.recordings, tier="oracle", folder=tmp_path / "evidence")


def test_infinite_and_withheld_responses_are_named(tmp_path):
    pool = make_pool(neurons=(5,))
    store = pool.store(tmp_path / "predictions")
    recording = pool.recordings[0]
    recording._responses[3][2, 70] = np.inf
    with pytest.raises(
        ScoreError, match="mouse-0: trial 3: the response of neuron 2 is infinite at frame 70"
    ):
        gather(store, pool.members, [recording], tier="oracle", folder=tmp_path / "evidence")
    recording.trials = tuple(replace(trial, has_responses=False) for trial in recording.trials)
    with pytest.raises(ScoreError, match="responses of trial 0 of mouse-0 are withheld"):
        gather(store, pool.members, [recording], tier="oracle", folder=tmp_path / "evidence")


def test_weights_and_clips_that_do_not_fit_are_refused(evidence):
    with pytest.raises(EvidenceError, match=r"weights have shape \(5,\), but must have \(6,\) or \(6, 6\)"):
        evidence.score(np.ones(5))
    with pytest.raises(EvidenceError, match=r"clips are \[6\], but must be one or more of 0 to 5"):
        evidence.score(np.ones(6), clips=[6])
    with pytest.raises(EvidenceError, match="weights are not finite"):
        evidence.score(np.full(6, np.nan))
    with pytest.raises(EvidenceError, match="member is 'member-9', but must be one of member-0"):
        evidence.only(["member-9"])


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_weights_and_multiset_of_clips_are_exact(evidence, evidence_pool, data):
    pool, store = evidence_pool
    weights = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=6, max_size=6)))
    clips = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    # A sum that cancels has next to no variance, and then float32 blocks are not exact (see the docs).
    assume(np.abs(weights.sum()) > 0.1)
    names = [evidence.clips[number].name for number in clips]
    found = evidence.score(weights, clips=clips).by_neuron
    for session, wanted in direct_scores(pool, store, weights, clips=names).items():
        np.testing.assert_allclose(found[session], wanted, atol=TOLERANCE)
