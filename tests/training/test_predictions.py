import json
import multiprocessing
import os
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest

from training.prediction_info import PredictionError, PredictionInfo, common_frames, require_same
from training.prediction_writer import fits_float16
from training.predictions import PredictionStore

INFO = PredictionInfo(
    member="vivit-1",
    session="mouse",
    tier="oracle",
    trials=(7, 3, 12),
    frames=((50, 60), (51, 61), (50, 58)),
    num_neurons=4,
    neurons_sha256="a" * 64,
    fingerprint="b" * 64,
    checkpoint_sha256="c" * 64,
)


@pytest.fixture
def store(tmp_path):
    return PredictionStore(root=tmp_path / "predictions")


def make_trial(trial, info=INFO, *, scale=1.0):
    first, stop = info.frames[info.trials.index(trial)]
    rng = np.random.default_rng(trial)
    return (scale * rng.gamma(1.0, size=(info.num_neurons, stop - first))).astype(np.float32)


def write_all(store, info=INFO, *, scale=1.0):
    with store.writer(info) as writer:
        for trial in writer.missing:
            writer.write(trial, make_trial(trial, info, scale=scale))
    return store.open(info.member, info.session, info.tier)


def test_trials_come_back_by_index_in_half_precision(store):
    predictions = write_all(store)
    assert predictions.values.dtype == np.float16
    assert predictions.info == INFO
    assert store.has(INFO)
    for trial in INFO.trials:
        np.testing.assert_array_equal(
            predictions.trial(trial), make_trial(trial).astype(np.float16).astype(np.float32)
        )
    predictions.verify()


def test_rows_share_one_frame_axis_with_a_mask(store):
    predictions = write_all(store)
    assert predictions.values.shape == (3, 4, 11)
    assert INFO.window == (50, 61)
    expected = np.zeros((3, 11), dtype=bool)
    for row, (first, stop) in enumerate(INFO.frames):
        for frame in range(first, stop):
            expected[row, frame - 50] = True
    np.testing.assert_array_equal(INFO.mask, expected)
    assert np.all(predictions.values.transpose(0, 2, 1)[~expected] == 0)
    assert np.all(predictions.values.transpose(0, 2, 1)[expected] > 0)


def test_reading_is_mapped_and_read_only(store):
    predictions = write_all(store)
    assert isinstance(predictions.values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        predictions.values[0, 0, 0] = 1


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_that_half_precision_cannot_hold_are_kept_in_single(store, scale):
    predictions = write_all(store, scale=scale)
    assert predictions.values.dtype == np.float32
    for trial in INFO.trials:
        np.testing.assert_array_equal(predictions.trial(trial), make_trial(trial, scale=scale))


def test_a_late_trial_that_does_not_fit_keeps_what_was_written(store):
    with store.writer(INFO) as writer:
        writer.write(7, make_trial(7))
        writer.write(3, 1e5 * make_trial(3))
        writer.write(12, make_trial(12))
    predictions = store.open("vivit-1", "mouse", "oracle")
    assert predictions.values.dtype == np.float32
    np.testing.assert_array_equal(predictions.trial(7), make_trial(7).astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(predictions.trial(3), 1e5 * make_trial(3))
    np.testing.assert_array_equal(predictions.trial(12), make_trial(12))


@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0])
def test_correlations_survive_what_counts_as_fitting(mean):
    rng = np.random.default_rng(0)
    traces = (mean + 0.3 * rng.gamma(1.0, size=(50, 250))).astype(np.float32)
    responses = traces + rng.normal(size=traces.shape)
    assert fits_float16(traces)
    exact, rounded = (
        np.array([np.corrcoef(p, r)[0, 1] for p, r in zip(values.astype(np.float64), responses, strict=True)])
        for values in (traces, traces.astype(np.float16))
    )
    # Rounding is at most 0.3 % of a trace's spread, so a correlation moves by 0.003 over sqrt(frames).
    assert np.abs(exact - rounded).max() < 4 * 0.003 / np.sqrt(250)
    assert abs((exact - rounded).mean()) < 1e-4


@pytest.mark.parametrize(("mean", "fits"), [(1.0, True), (300.0, False)])
def test_changes_that_drown_in_rounding_do_not_fit(mean, fits):
    traces = mean + 0.3 * np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
    assert fits_float16(traces) == fits


def test_neurons_that_never_change_do_not_ask_for_single_precision():
    traces = np.random.default_rng(0).gamma(1.0, size=(5, 100)).astype(np.float32)
    traces[0] = 0.1
    traces[1] = 0
    assert fits_float16(traces)
    assert fits_float16(np.full((2, 10), 0.1, dtype=np.float32))
    assert not fits_float16(np.full((2, 10), 1e-7, dtype=np.float32))


def test_an_interrupted_file_is_invisible_and_continued(store):
    def interrupted():
        with store.writer(INFO) as writer:
            writer.write(3, make_trial(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not store.has(INFO)
    assert list(store.infos()) == []
    with store.writer(INFO) as writer:
        assert writer.missing == (7, 12)
        writer.write(7, make_trial(7))
        writer.write(12, make_trial(12))
    predictions = store.open("vivit-1", "mouse", "oracle")
    for trial in INFO.trials:
        np.testing.assert_allclose(predictions.trial(trial), make_trial(trial), rtol=1e-3)
    names = {path.name for path in store.path("vivit-1", "mouse", "oracle").parent.iterdir()}
    assert names == {"oracle.npy", "oracle.json"}


def _die_while_writing(root, written):
    writer = PredictionStore(root=root).writer(INFO)
    for trial in written:
        writer.write(trial, make_trial(trial))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("written", [(), (12,), (12, 7), (12, 7, 3)])
def test_a_killed_writer_loses_no_finished_trial(store, written):
    process = multiprocessing.get_context("fork").Process(
        target=_die_while_writing, args=(store.root, written)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with store.writer(INFO) as writer:
        assert writer.missing == tuple(trial for trial in INFO.trials if trial not in written)
        for trial in writer.missing:
            writer.write(trial, make_trial(trial))
    np.testing.assert_allclose(store.open("vivit-1", "mouse", "oracle").trial(12), make_trial(12), rtol=1e-3)


def test_a_crash_between_file_and_sidecar_loses_nothing(store):
    writer = store.writer(INFO)
    for trial in INFO.trials:
        writer.write(trial, make_trial(trial))
    journal = writer._journal.read_text()
    writer.finish()
    # What the crash leaves: the file under its name, no sidecar, and the journal.
    store.path("vivit-1", "mouse", "oracle").with_suffix(".json").unlink()
    writer._journal.write_text(journal)
    assert not store.has(INFO)
    with store.writer(INFO) as again:
        assert again.missing == ()
    np.testing.assert_allclose(store.open("vivit-1", "mouse", "oracle").trial(3), make_trial(3), rtol=1e-3)


def test_a_full_disk_is_an_error_that_costs_one_trial(store):
    writer = store.writer(INFO)
    writer.write(7, make_trial(7))
    row_bytes = 4 * 11 * 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No byte behind the first row can be written.
    limit = writer._partial.stat().st_size - 2 * row_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.write(12, make_trial(12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    with store.writer(INFO) as again:
        assert again.missing == (3, 12)
        for trial in again.missing:
            again.write(trial, make_trial(trial))
    np.testing.assert_allclose(store.open("vivit-1", "mouse", "oracle").trial(7), make_trial(7), rtol=1e-3)


def test_a_journal_line_cut_short_does_not_count(store):
    writer = store.writer(INFO)
    writer.write(7, make_trial(7))
    writer.close()
    with writer._journal.open("a") as journal:
        journal.write("1")  # of 12
    with pytest.raises(PredictionError, match="misses 2 of 3 trials, first 3"), store.writer(INFO) as again:
        assert again.missing == (3, 12)


def test_a_partial_file_of_other_predictions_is_replaced(store):
    writer = store.writer(INFO)
    writer.write(7, make_trial(7))
    writer.close()
    other = replace(INFO, checkpoint_sha256="d" * 64)
    with store.writer(other) as again:
        assert again.missing == other.trials
        for trial in again.missing:
            again.write(trial, make_trial(trial))
    assert store.has(other)
    assert not store.has(INFO)


def test_two_writers_of_one_file_are_refused(store):
    writer = store.writer(INFO)
    with pytest.raises(PredictionError, match="is being written by another process"):
        store.writer(INFO)
    writer.close()
    store.writer(INFO).close()


def test_bad_trials_are_refused_by_name(store):
    writer = store.writer(INFO)
    with pytest.raises(PredictionError, match=r"trial 5 of mouse \(oracle\) is not predicted by vivit-1"):
        writer.write(5, make_trial(7))
    with pytest.raises(PredictionError, match="has 4 neurons and 8 frames, but must have 4 and 10"):
        writer.write(7, make_trial(12))
    broken = make_trial(7)
    broken[2, 1] = np.nan
    with pytest.raises(PredictionError, match="vivit-1: trial 7 of mouse: the prediction of neuron 2 is nan"):
        writer.write(7, broken)
    assert writer.missing == INFO.trials
    writer.close()


def test_missing_and_damaged_files_say_what_to_do(store):
    with pytest.raises(PredictionError, match="predictions are vivit-1/mouse/oracle, but must be"):
        store.open("vivit-1", "mouse", "oracle")
    predictions = write_all(store)
    with pytest.raises(PredictionError, match="did you mean vivit-1/mouse/oracle"):
        store.open("vivit-1", "mouse", "oracl")
    with predictions.path.open("r+b") as file:
        file.seek(200)
        file.write(b"\x01\x02")
    with pytest.raises(PredictionError, match="the file was changed; delete it and predict again"):
        store.open("vivit-1", "mouse", "oracle").verify()
    with predictions.path.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(PredictionError, match=r"cannot be read .* predict again"):
        store.open("vivit-1", "mouse", "oracle")
    np.save(predictions.path, np.zeros((3, 4, 10), dtype=np.float16))
    with pytest.raises(
        PredictionError, match=r"holds float16 \(3, 4, 10\), but must hold float16 \(3, 4, 11\)"
    ):
        store.open("vivit-1", "mouse", "oracle")
    sidecar = predictions.path.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "format": 99}))
    with pytest.raises(PredictionError, match="has format 99, but this version reads 1"):
        store.open("vivit-1", "mouse", "oracle")
    sidecar.write_text("{")
    with pytest.raises(PredictionError, match="is not a sidecar of predictions"):
        store.open("vivit-1", "mouse", "oracle")
    assert not store.has(INFO)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trials": (7, 3, 13)}, r"trials is \(7, 3, 12; 3 in all\) in vivit-1 and \(7, 3, 13; 3 in all\)"),
        ({"num_neurons": 5}, "num_neurons is 4 in vivit-1 and 5 in other"),
        ({"neurons_sha256": "e" * 64}, "neurons_sha256 is a{64} in vivit-1 and e{64} in other"),
        ({"fingerprint": "e" * 64}, "fingerprint is b{64} in vivit-1 and e{64} in other"),
        ({"frames": ((50, 60), (51, 61), (50, 57))}, r"frames is \(\(50, 60\)"),
        ({"units": "raw"}, "units is response_std in vivit-1 and raw in other"),
    ],
)
def test_members_that_differ_are_refused_naming_both(change, named):
    other = replace(INFO, member="other", **change)
    with pytest.raises(PredictionError, match=f"predictions of vivit-1 and other .*{named}"):
        require_same(INFO, other)


def test_another_checkpoint_of_the_same_data_is_what_ensembles_are_made_of():
    require_same(INFO, replace(INFO, member="other", checkpoint_sha256="f" * 64))


def test_members_with_other_windows_share_the_frames_common_to_all():
    other = replace(INFO, member="other", frames=((51, 61), (51, 60), (40, 55)))
    assert common_frames([INFO, other]) == ((51, 60), (51, 60), (50, 55))
    apart = replace(INFO, member="apart", frames=((10, 20), (51, 61), (50, 58)))
    with pytest.raises(PredictionError, match="vivit-1, apart have no predicted frame of trial 7 in common"):
        common_frames([INFO, apart])


@pytest.mark.parametrize(
    "bad",
    [
        {"member": "../x"},
        {"session": ""},
        {"trials": (1, 1, 2)},
        {"trials": ()},
        {"frames": ((50, 60),)},
        {"frames": ((50, 50), (51, 61), (50, 58))},
        {"num_neurons": 0},
    ],
)
def test_impossible_descriptions_are_refused(bad):
    with pytest.raises(PredictionError):
        replace(INFO, **bad)
