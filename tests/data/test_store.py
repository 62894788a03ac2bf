"""The store's files, its manifest, and recordings opened from it; all arrays are made by hand."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.array_files import ArrayWriter, StoreError, check_hash, map_array, write_array
from data.recording import Neurons, Recording, Stimulus, Tier, open_store
from data.sensorium import RawTrial
from data.session_writer import ResponseRangeError, SessionWriter, read_clips
from data.store import STATISTICS, VARIABLES, Manifest, Source, check_store, read_manifest, write_manifest
from data.trial_table import read_trials, write_all_trials
from data.videos import grey_levels, sign_video

HEIGHT, WIDTH, PADDED, NUM_NEURONS = 3, 4, 9, 5


def make_trial(
    index, num_frames, *, seed, tier=Tier.TRAIN, video_seed=None, withheld=False, dtype=np.float64
):
    rng = np.random.default_rng([5, seed])
    video = np.random.default_rng([6, seed if video_seed is None else video_seed])
    grey = (255 * video.random((num_frames, HEIGHT, WIDTH))).astype(dtype)
    lengths = dict.fromkeys(VARIABLES, num_frames)
    if withheld:
        del lengths["responses"]
    return RawTrial(
        index=index,
        tier=Tier.TRAIN,
        num_frames=num_frames,
        video=grey,
        behavior=rng.random((2, num_frames)).astype(dtype),
        pupil=rng.random((2, num_frames)).astype(dtype),
        responses=None if withheld else (100 * rng.random((NUM_NEURONS, num_frames))).astype(dtype),
        valid_lengths=lengths,
        signature=sign_video(grey_levels(grey)),
        stimulus=Stimulus.MOVIE,
    )


def write_session(store, session, trials, *, known_clips=None, responses="float16", video="uint8"):
    neurons = Neurons(ids=np.arange(NUM_NEURONS) * 3 + 1, coordinates_um=np.ones((NUM_NEURONS, 3)))
    with SessionWriter(
        store,
        session,
        neurons=neurons,
        source=Source(name=session, dtype="float64", key="0"),
        frame_rate_hz=30.0,
        frame_shape=(HEIGHT, WIDTH),
        num_padded_frames=PADDED,
        responses_dtype=responses,
        video_dtype=video,
        known_clips=known_clips or {},
    ) as writer:
        for trial in trials:
            writer.add(trial)
        for position, variable in enumerate(VARIABLES):
            shape = (NUM_NEURONS if variable == "responses" else 2, PADDED)
            writer.add_statistics(
                variable, {name: np.full(shape, 10.0 * position + i) for i, name in enumerate(STATISTICS)}
            )
        return writer.finish()


def publish(store, entries):
    """Make the sessions a store; a trial's video is named after the trial it was first stored for."""
    rows = [row for entry in entries for row in read_trials(store / entry.session / "trials.parquet")]
    named = [replace(row, video_id=f"{row.video_session[-1]}{row.video_row}") for row in rows]
    table, file = write_all_trials(store, named)
    write_manifest(
        store,
        Manifest(trials_table=table, trials_file=file, sessions={entry.session: entry for entry in entries}),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two sessions; mouse-b's first trial shows the clip of mouse-a's second."""
    store = tmp_path_factory.mktemp("built") / "store"
    trials = {
        "mouse-a": [
            make_trial(0, 6, seed=0),
            make_trial(1, 8, seed=1),
            make_trial(2, 5, seed=2, withheld=True),
        ],
        "mouse-b": [
            make_trial(0, 8, seed=3, video_seed=1, dtype=np.float32),
            make_trial(1, 7, seed=4, dtype=np.float32),
        ],
    }
    first = write_session(store, "mouse-a", trials["mouse-a"])
    known = read_clips(read_trials(store / "mouse-a" / "trials.parquet"))
    second = write_session(store, "mouse-b", trials["mouse-b"], known_clips=known)
    publish(store, [first, second])
    return store, trials


@pytest.fixture
def store(built, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(built[0], tmp_path / "store"))


def test_an_array_written_in_pieces_is_what_numpy_reads(tmp_path):
    expected = np.arange(30, dtype=np.float32).reshape(5, 3, 2)
    with ArrayWriter(tmp_path / "a.npy", dtype="float32", row_shape=(3, 2)) as writer:
        assert writer.append(expected[:2]) == 0
        assert writer.append(expected[2:].transpose(0, 2, 1).copy().transpose(0, 2, 1)) == 2
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), expected)
    entry = writer.entry()
    assert entry.size == (tmp_path / "a.npy").stat().st_size
    assert entry.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()
    check_hash(tmp_path / "a.npy", entry)


def test_an_array_whose_writer_failed_cannot_be_read(tmp_path):
    writer = ArrayWriter(tmp_path / "a.npy", dtype="float32", row_shape=(2,))
    writer.append(np.ones((4, 2), np.float32))
    writer.__exit__(KeyError)
    with pytest.raises(ValueError):
        np.load(tmp_path / "a.npy", allow_pickle=False)


def test_an_empty_array_can_be_mapped(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", dtype="float16", row_shape=(7,)) as writer:
        pass
    assert map_array(tmp_path / "a.npy", writer.entry()).shape == (0, 7)


def test_a_header_that_lies_about_the_array_is_refused(tmp_path):
    entry = write_array(tmp_path / "a.npy", np.zeros((4, 6), np.float32))
    write_array(tmp_path / "a.npy", np.zeros((6, 4), np.float32))
    with pytest.raises(StoreError, match=r"float32 \(6, 4\).*float32 \(4, 6\)"):
        map_array(tmp_path / "a.npy", entry)
    with pytest.raises(StoreError, match="header"):
        check_hash(tmp_path / "a.npy", entry)


@pytest.mark.parametrize("session", ["mouse-a", "mouse-b"])
def test_reading_back_equals_what_was_written(built, session):
    store, trials = built
    recording = Recording.open(store, session)
    assert len(recording.trials) == len(trials[session])
    for trial, expected in zip(recording.trials, trials[session], strict=True):
        assert np.abs(recording.video(trial).astype(np.float64) - expected.video).max() <= 0.5
        np.testing.assert_array_equal(recording.behavior(trial), expected.behavior.astype(np.float32))
        np.testing.assert_array_equal(recording.pupil(trial), expected.pupil.astype(np.float32))
        if expected.responses is None:
            assert recording.responses(trial) is None
        else:
            np.testing.assert_allclose(recording.responses(trial), expected.responses, rtol=2**-11)


def test_frames_are_the_rows_asked_for_at_any_step(built):
    recording = Recording.open(built[0], "mouse-a")
    for trial in recording.trials:
        for start in range(trial.num_frames):
            for stop in range(start + 1, trial.num_frames + 1):
                for step in (1, 2, 3):
                    frames = recording.frames(trial, start, stop, step)
                    rows = list(range(start, stop, step))
                    np.testing.assert_array_equal(frames.video, recording.video(trial)[rows])
                    np.testing.assert_array_equal(frames.behavior, recording.behavior(trial).T[rows])
                    np.testing.assert_array_equal(frames.pupil, recording.pupil(trial).T[rows])
                    responses = recording.responses(trial)
                    if responses is None:
                        assert frames.responses is None
                    else:
                        np.testing.assert_array_equal(frames.responses, responses.T[rows])


def test_frames_are_read_only_views_of_the_mapped_files(built):
    recording = Recording.open(built[0], "mouse-a")
    first = recording.frames(recording.trials[0], 0, 6)
    second = recording.frames(recording.trials[0], 2, 4)
    for name in ("video", "behavior", "pupil", "responses"):
        assert np.shares_memory(getattr(first, name), getattr(second, name))
        assert not getattr(first, name).flags.writeable


@pytest.mark.parametrize(("start", "stop", "step"), [(-1, 3, 1), (0, 7, 1), (3, 3, 1), (0, 3, 0)])
def test_frames_outside_of_a_trial_are_refused(built, start, stop, step):
    recording = Recording.open(built[0], "mouse-a")
    with pytest.raises(ValueError, match=r"trial 0 of mouse-a.*0:6"):
        recording.frames(recording.trials[0], start, stop, step)


def test_another_recordings_trial_is_refused(built):
    recording_a, recording_b = open_store(built[0])
    with pytest.raises(ValueError, match="must be one of the trials of mouse-a"):
        recording_a.video(recording_b.trials[0])


def test_a_clip_two_mice_saw_is_stored_once(built):
    store, trials = built
    frames = [len(np.load(store / s / "videos.npy", mmap_mode="r")) for s in ("mouse-a", "mouse-b")]
    assert frames == [6 + 8 + 5, 7]
    recording = Recording.open(store, "mouse-b")
    expected = trials["mouse-a"][1].video
    assert np.abs(recording.video(recording.trials[0]).astype(np.float64) - expected).max() <= 0.5


def test_withheld_responses_take_no_room(built):
    assert np.load(built[0] / "mouse-a" / "responses.npy", mmap_mode="r").shape == (6 + 8, 5)


def test_statistics_come_back_by_name(built):
    recording = Recording.open(built[0], "mouse-a")
    for position, variable in enumerate(VARIABLES):
        for index, name in enumerate(STATISTICS):
            values = recording.statistics(variable, name)
            assert values.dtype == np.float32
            assert values.shape == (5 if variable == "responses" else 2, PADDED)
            assert (values == 10 * position + index).all()
    with pytest.raises(ValueError, match="'gaze', but must be one of videos, responses"):
        recording.statistics("gaze", "mean")


def test_a_recording_describes_itself(built):
    recording = Recording.open(built[0], "mouse-a")
    assert (recording.frame_rate_hz, recording.frame_shape) == (30.0, (HEIGHT, WIDTH))
    assert recording.neurons.ids.tolist() == [1, 4, 7, 10, 13]
    assert [trial.num_frames for trial in recording.trials] == [6, 8, 5]
    assert recording.trials[2].has_responses is False
    assert recording.trials[1].stimulus is Stimulus.MOVIE


def test_a_pickled_recording_is_small_and_opens_itself_in_another_process(built, tmp_path):
    recording = Recording.open(built[0], "mouse-b")
    recording.video(recording.trials[0])
    content = pickle.dumps(recording)
    assert len(content) < 1000
    (tmp_path / "recording.pickle").write_bytes(content)
    program = (
        "import pickle, sys, pathlib\n"
        "r = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(r.session, r.fingerprint, int(r.video(r.trials[0]).sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "recording.pickle"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    total = int(recording.video(recording.trials[0]).sum())
    assert done.stdout.split() == ["mouse-b", recording.fingerprint, str(total)]


def test_a_pickled_recording_keeps_its_video_ids_when_sessions_join_the_store(store):
    recording = Recording.open(store, "mouse-a")
    content = pickle.dumps(recording)
    manifest = read_manifest(store)
    rows = read_trials(store / manifest.trials_table)
    renamed = [replace(row, video_id=f"new-{row.video_id}") for row in rows]
    table, file = write_all_trials(store, renamed)
    write_manifest(store, Manifest(trials_table=table, trials_file=file, sessions=manifest.sessions))
    reopened = Recording.open(store, "mouse-a")
    assert [trial.video_id for trial in reopened.trials] == [
        "new-a0",
        "new-a6",
        "new-a14",
    ]
    assert [trial.video_id for trial in pickle.loads(content).trials] == ["a0", "a6", "a14"]


def test_an_unknown_session_is_refused_with_the_known_ones(built):
    with pytest.raises(StoreError, match=r"'mouse-c', but must be one of mouse-a, mouse-b.*mean mouse-"):
        Recording.open(built[0], "mouse-c")


def test_a_folder_without_a_manifest_is_not_a_store(tmp_path, store):
    with pytest.raises(StoreError, match="is not a store"):
        open_store(tmp_path)
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError, match="unfinished conversion"):
        open_store(store)


def test_another_format_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["format_version"] = 2
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="has format version 2, but must have 1"):
        open_store(store)


def test_a_manifest_of_something_else_is_refused(store):
    (store / "manifest.json").write_text('{"name": "app"}')
    with pytest.raises(StoreError, match="striate-store"):
        open_store(store)
    (store / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        open_store(store)
    (store / "manifest.json").write_text('{"format": "striate-store", "format_version": 1, "tables": {}}')
    with pytest.raises(StoreError, match=r"manifest\.json is incomplete .*'trials'"):
        open_store(store)


def test_a_damaged_table_of_trials_is_refused(store):
    path = store / read_manifest(store).trials_table
    content = path.read_bytes()
    for damaged in (content[:-20], content[:4] + bytes(len(content) - 8) + content[-4:], b""):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=f"{path.name} is not a table of trials"):
            open_store(store)
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name} is missing"):
        open_store(store)


def test_a_truncated_file_is_refused_before_anything_is_mapped(store):
    path = store / "mouse-a" / "responses.npy"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 2)
    with pytest.raises(StoreError, match=f"responses.npy has {size - 2} bytes, but must have {size}"):
        Recording.open(store, "mouse-a")


def test_a_missing_file_is_refused(store):
    (store / "mouse-a" / "behavior.npy").unlink()
    with pytest.raises(StoreError, match=r"behavior\.npy is missing"):
        Recording.open(store, "mouse-a")


def test_a_truncated_video_file_of_the_partner_mouse_is_refused(store):
    recording = Recording.open(store, "mouse-b")
    path = store / "mouse-a" / "videos.npy"
    with path.open("r+b") as file:
        file.truncate(200)
    with pytest.raises(StoreError, match=r"mouse-a/videos\.npy has 200 bytes"):
        recording.video(recording.trials[0])


def test_checking_finds_every_changed_file_and_only_those(store):
    progress = []
    assert check_store(store, on_file=lambda *pair: progress.append(pair)) == []
    assert progress[-1][0] == progress[-1][1] > 0
    manifest = read_manifest(store)
    for path in (store / "mouse-a" / "responses.npy", store / manifest.trials_table):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    (store / "mouse-b" / "neurons.parquet").unlink()
    problems = check_store(store)
    assert len(problems) == 3
    assert any("responses.npy has sha256" in problem for problem in problems)
    assert any("trials-" in problem for problem in problems)
    assert any("neurons.parquet is missing" in problem for problem in problems)


def test_the_tables_read_as_plain_parquet(built):
    store = built[0]
    table = pq.read_table(store / read_manifest(store).trials_table).to_pylist()
    assert [(row["session"], row["trial"], row["num_frames"]) for row in table] == [
        ("mouse-a", 0, 6),
        ("mouse-a", 1, 8),
        ("mouse-a", 2, 5),
        ("mouse-b", 0, 8),
        ("mouse-b", 1, 7),
    ]


def test_the_fingerprint_follows_the_data(tmp_path):
    def fingerprint(name, trial):
        return write_session(tmp_path / name, "mouse", [trial]).fingerprint

    trial = make_trial(0, 6, seed=0)
    reference = fingerprint("reference", trial)
    assert fingerprint("again", trial) == reference
    assert fingerprint("video", replace(trial, video=255 - trial.video)) != reference
    assert fingerprint("responses", replace(trial, responses=trial.responses + 1)) != reference
    assert fingerprint("behavior", replace(trial, pupil=trial.pupil + 1)) != reference
    assert fingerprint("tier", replace(trial, tier=Tier.ORACLE)) != reference


def test_float16_video_keeps_fractions_of_a_grey_level(tmp_path):
    raw = make_trial(0, 6, seed=0)
    publish(tmp_path, [write_session(tmp_path, "mouse", [raw], video="float16")])
    recording = Recording.open(tmp_path, "mouse")
    np.testing.assert_allclose(recording.video(recording.trials[0]), raw.video, rtol=2**-11)


def test_arrays_of_different_length_are_cut_to_the_shortest_and_remembered(tmp_path):
    whole = make_trial(0, 8, seed=0)
    lengths = {**whole.valid_lengths, "behavior": 7}
    raw = replace(whole, num_frames=7, behavior=whole.behavior[:, :7], valid_lengths=lengths)
    publish(tmp_path, [write_session(tmp_path, "mouse", [raw])])
    recording = Recording.open(tmp_path, "mouse")
    assert recording.video(recording.trials[0]).shape == (7, HEIGHT, WIDTH)
    assert recording.pupil(recording.trials[0]).shape == (2, 7)
    (row,) = read_trials(tmp_path / "mouse" / "trials.parquet")
    lengths = (row.valid_videos, row.valid_behavior, row.valid_pupil_center, row.valid_responses)
    assert lengths == (8, 7, 8, 8)


@pytest.mark.parametrize(("scale", "message"), [(1000.0, "float16 ends"), (1e-4, "float16 loses digits")])
def test_responses_that_float16_cannot_hold_are_refused(tmp_path, scale, message):
    raw = make_trial(0, 6, seed=0)
    raw = replace(raw, responses=raw.responses * scale)
    with pytest.raises(ResponseRangeError, match=message):
        write_session(tmp_path, "mouse", [raw])
    assert list(tmp_path.iterdir()) == []
    publish(tmp_path, [write_session(tmp_path, "mouse", [raw], responses="float32")])
    recording = Recording.open(tmp_path, "mouse")
    np.testing.assert_allclose(recording.responses(recording.trials[0]), raw.responses, rtol=2**-23)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_responses_that_are_not_numbers_are_refused(tmp_path, value):
    raw = make_trial(4, 6, seed=0)
    raw.responses[2, 3] = value
    with pytest.raises(StoreError, match=r"mouse: the responses of trial 4 .* must be finite"):
        write_session(tmp_path, "mouse", [raw], responses="float32")


def test_grey_levels_a_byte_cannot_hold_are_refused(tmp_path):
    raw = make_trial(0, 6, seed=0)
    with pytest.raises(StoreError, match=r"trial 0 has grey levels from .* within 0\.\.255"):
        write_session(tmp_path, "mouse", [replace(raw, video=raw.video + 100)])


def test_statistics_the_source_came_without_are_refused_by_name(tmp_path):
    entry = write_session(tmp_path, "mouse", [make_trial(0, 6, seed=0)])
    files = {name: file for name, file in entry.files.items() if name != "statistics/responses.npy"}
    publish(tmp_path, [replace(entry, files=files)])
    with pytest.raises(StoreError, match="no official statistics of responses: its source, mouse"):
        Recording.open(tmp_path, "mouse").statistics("responses", "std")
