"""Conversion of raw recordings: what comes out, and what happens when it is interrupted or repeated."""

import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from raw_recordings import NEW_MOUSE, NUM_NEURONS, OLD_MOUSE, plan_trials, write_mouse

import data
from data.array_files import StoreError
from data.conversion import ConversionConfig, convert, describe_source
from data.recording import RecordingError, open_store
from data.store import check_store, read_manifest
from data.trial_table import read_trials

RESPONSES_TOLERANCE = {"float16": 2.0**-11, "float32": 2.0**-23}


def load(folder, array, index):
    """Read a raw array up to its first NaN, time last."""
    values = np.load(folder / "data" / array / f"{index}.npy").astype(np.float64)
    is_nan = np.isnan(values).reshape(-1, values.shape[-1]).any(axis=0)
    return values[..., : int(np.argmax(is_nan)) if is_nan.any() else len(is_nan)]


def assert_equals_raw(recording, folder, *, responses="float16"):
    tiers = np.load(folder / "meta" / "trials" / "tiers.npy")
    assert [trial.tier.value for trial in recording.trials] == tiers.tolist()
    for trial in recording.trials:
        names = ("videos", "responses", "behavior", "pupil_center")
        arrays = {name: load(folder, name, trial.index) for name in names}
        is_withheld = not arrays["responses"].any()
        lengths = [len(a.T) for name, a in arrays.items() if not (name == "responses" and is_withheld)]
        kept = slice(min(lengths))
        assert trial.num_frames == min(lengths)
        assert trial.has_responses == (not is_withheld)
        video = np.moveaxis(arrays["videos"][..., kept], -1, 0)
        assert np.abs(recording.video(trial).astype(np.float64) - video).max() <= 0.5
        np.testing.assert_allclose(recording.behavior(trial), arrays["behavior"][:, kept], rtol=2**-23)
        np.testing.assert_allclose(recording.pupil(trial), arrays["pupil_center"][:, kept], rtol=2**-23)
        if is_withheld:
            assert recording.responses(trial) is None
            continue
        stored = recording.responses(trial)
        assert stored.dtype == responses
        # Below 2^-14 float16 has fewer bits, but still steps of 2^-24.
        np.testing.assert_allclose(
            stored, arrays["responses"][:, kept], rtol=RESPONSES_TOLERANCE[responses], atol=2.0**-25
        )


def test_a_store_holds_what_the_raw_folders_hold(recordings, raw_folders):
    assert [recording.session for recording in recordings] == [OLD_MOUSE, NEW_MOUSE]
    for recording, folder in zip(recordings, raw_folders, strict=True):
        assert_equals_raw(recording, folder)
        ids = np.load(folder / "meta" / "neurons" / "unit_ids.npy")
        np.testing.assert_array_equal(recording.neurons.ids, ids)
        coordinates = np.load(folder / "meta" / "neurons" / "cell_motor_coordinates.npy")
        np.testing.assert_array_equal(recording.neurons.coordinates_um, coordinates)


def test_official_statistics_survive(recordings, raw_folders):
    for recording, folder in zip(recordings, raw_folders, strict=True):
        for variable in ("videos", "responses", "behavior", "pupil_center"):
            for name in ("min", "max", "mean", "median", "std"):
                expected = np.load(folder / "meta" / "statistics" / variable / "all" / f"{name}.npy")
                stored = recording.statistics(variable, name)
                np.testing.assert_array_equal(stored, expected.astype(np.float32))


def test_partners_share_video_ids_and_nothing_else_does(recordings):
    shown = {recording.session: plan_trials(recording.session) for recording in recordings}
    numbers_of_id, ids_of_number = {}, {}
    for recording in recordings:
        for trial in recording.trials:
            number = shown[recording.session][trial.index][1]
            numbers_of_id.setdefault(trial.video_id, set()).add(number)
            ids_of_number.setdefault(number, set()).add(trial.video_id)
    assert all(len(numbers) == 1 for numbers in numbers_of_id.values())
    assert all(len(ids) == 1 for ids in ids_of_number.values())


def test_clips_are_stored_once_for_both_mice(recordings):
    store = recordings[0].store
    rows = read_trials(store / read_manifest(store).trials_table)
    lengths = {(row.video_session, row.video_row): row.valid_videos for row in rows}
    stored = sum(len(np.load(store / r.session / "videos.npy", mmap_mode="r")) for r in recordings)
    distinct = {recordings[s].video(t).tobytes() for s in (0, 1) for t in recordings[s].trials}
    assert stored == sum(lengths.values())
    assert len(lengths) <= len(distinct) < len(rows)


def test_a_store_passes_its_own_check(recordings):
    assert check_store(recordings[0].store) == []


def test_a_zip_becomes_the_same_store_as_its_folder(raw_folders, recordings, tmp_path):
    path = tmp_path / f"{OLD_MOUSE}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(raw_folders[0].rglob("*.npy")):
            archive.write(file, f"{OLD_MOUSE}/{file.relative_to(raw_folders[0])}")
        archive.writestr(f"__MACOSX/{OLD_MOUSE}/._config.json", b"")
    convert([path], tmp_path / "store")
    (recording,) = open_store(tmp_path / "store")
    assert recording.fingerprint == recordings[0].fingerprint
    assert_equals_raw(recording, raw_folders[0])


def test_float32_is_kept_where_asked_for(raw_folders, tmp_path):
    convert(raw_folders[1:], tmp_path, ConversionConfig(responses="float32", video="float16"))
    (recording,) = open_store(tmp_path)
    assert_equals_raw(recording, raw_folders[1], responses="float32")
    assert recording.video(recording.trials[0]).dtype == np.float16


def large_responses(folder):
    path = folder / "data" / "responses" / "9.npy"
    values = np.load(path)
    values[1, 2] = 70_000
    np.save(path, values)


def test_values_beyond_float16_make_the_session_float32(tmp_path, caplog):
    folder = write_mouse(tmp_path / OLD_MOUSE)
    large_responses(folder)
    with caplog.at_level(logging.INFO):
        convert([folder], tmp_path / "store")
    assert "responses of trial 9 reach 70000" in caplog.text
    (recording,) = open_store(tmp_path / "store")
    assert_equals_raw(recording, folder, responses="float32")


def test_values_beyond_float16_are_an_error_where_float16_is_asked_for(tmp_path):
    folder = write_mouse(tmp_path / OLD_MOUSE)
    large_responses(folder)
    with pytest.raises(StoreError, match=r"responses of trial 9 reach 70000.*--responses float32"):
        convert([folder], tmp_path / "store", ConversionConfig(responses="float16"))
    with pytest.raises(StoreError, match="is not a store"):
        open_store(tmp_path / "store")


def test_progress_counts_the_bytes_of_the_sources(raw_folders, tmp_path):
    seen = []
    convert(raw_folders, tmp_path, on_progress=seen.append)
    total = sum(describe_source(folder).size for folder in raw_folders)
    done = [progress.done_bytes for progress in seen]
    assert {progress.total_bytes for progress in seen} == {total}
    assert done == sorted(done)
    assert done[-1] == total
    assert [progress.session for progress in seen[:: len(seen) - 1]] == [OLD_MOUSE, NEW_MOUSE]


def test_a_second_conversion_reads_nothing_again(raw_folders, tmp_path):
    first = convert(raw_folders, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    seen = []
    assert convert(raw_folders, tmp_path, on_progress=seen.append) == first
    del before[tmp_path / ".lock"]
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_mouse_that_joins_later_gets_its_partners_video_ids(raw_folders, recordings, tmp_path):
    convert(raw_folders[:1], tmp_path)
    (alone,) = open_store(tmp_path)
    seen = []
    convert(raw_folders, tmp_path, on_progress=seen.append)
    assert {progress.session for progress in seen} == {NEW_MOUSE}
    for joined, together in zip(open_store(tmp_path), recordings, strict=True):
        assert joined.trials == together.trials
        assert joined.fingerprint == together.fingerprint
    alone.video(alone.trials[0])


def test_order_of_conversion_does_not_change_recordings(raw_folders, recordings, tmp_path):
    convert(raw_folders[::-1], tmp_path)
    for other, recording in zip(open_store(tmp_path), recordings, strict=True):
        assert (other.session, other.trials) == (recording.session, recording.trials)
        for trial in recording.trials:
            np.testing.assert_array_equal(other.video(trial), recording.video(trial))


def test_the_same_session_from_changed_files_is_refused(tmp_path):
    folder = write_mouse(tmp_path / OLD_MOUSE)
    convert([folder], tmp_path / "store")
    shutil.rmtree(folder)
    write_mouse(folder, seed=1)
    with pytest.raises(StoreError, match=f"has {OLD_MOUSE} already, but from files of other"):
        convert([folder], tmp_path / "store")


def test_another_element_type_than_the_stores_is_refused(raw_folders, tmp_path):
    convert(raw_folders[:1], tmp_path)
    with pytest.raises(StoreError, match="as float16, but float32 is asked for; convert into a new store"):
        convert(raw_folders, tmp_path, ConversionConfig(responses="float32"))


def test_one_session_from_two_places_is_refused(raw_folders, tmp_path):
    copy = shutil.copytree(raw_folders[0], tmp_path / "copy" / OLD_MOUSE)
    with pytest.raises(StoreError, match=f"session {OLD_MOUSE} comes from .* leave one of them out"):
        convert([raw_folders[0], copy], tmp_path / "store")


def test_a_broken_trial_leaves_no_session_behind(tmp_path):
    folder = write_mouse(tmp_path / OLD_MOUSE)
    path = folder / "data" / "behavior" / "20.npy"
    values = np.load(path)
    values[0, 3] = np.inf
    np.save(path, values)
    with pytest.raises(RecordingError, match=r"behavior/20\.npy has 1 infinite values"):
        convert([folder], tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


def test_a_broken_mouse_is_found_before_another_is_converted(raw_folders, tmp_path):
    folder = write_mouse(tmp_path / NEW_MOUSE)
    (folder / "data" / "videos" / "4.npy").unlink()
    with pytest.raises(RecordingError, match="4"):
        convert([raw_folders[0], folder], tmp_path / "store")
    assert not (tmp_path / "store" / OLD_MOUSE).exists()


def test_a_full_disk_is_found_before_the_conversion_starts(raw_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StoreError, match=r"0\.0 GB of free disk.*make room"):
        convert(raw_folders, tmp_path)


def test_removing_a_session_that_holds_a_partners_clips_is_found(raw_folders, tmp_path):
    convert(raw_folders, tmp_path)
    shutil.rmtree(tmp_path / OLD_MOUSE)
    with pytest.raises(StoreError, match=f"clips that lie in {OLD_MOUSE}, which is gone"):
        convert(raw_folders[1:], tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from data.conversion import convert

session, trials = sys.argv[2], int(sys.argv[3])
seen = 0

def on_progress(progress):
    global seen
    seen += progress.session == session
    if seen == trials:
        os.kill(os.getpid(), signal.SIGKILL)

convert([Path(path) for path in sys.argv[4:]], Path(sys.argv[1]), on_progress=on_progress)
"""


def convert_and_kill(store, raw_folders, *, session, trials):
    """Convert in another process that kills itself after some trials of a session."""
    command = [sys.executable, "-c", KILLED, store, session, str(trials), *raw_folders]
    done = subprocess.run(command, check=False, timeout=50)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_conversion_goes_on_after_the_last_finished_mouse(raw_folders, recordings, tmp_path):
    convert_and_kill(tmp_path, raw_folders, session=NEW_MOUSE, trials=10)
    assert (tmp_path / f"{NEW_MOUSE}.partial" / "responses.npy").exists()
    with pytest.raises(StoreError, match="unfinished conversion"):
        open_store(tmp_path)
    finished = (tmp_path / OLD_MOUSE / "responses.npy").stat().st_mtime_ns
    seen = []
    convert(raw_folders, tmp_path, on_progress=seen.append)
    assert {progress.session for progress in seen} == {NEW_MOUSE}
    assert (tmp_path / OLD_MOUSE / "responses.npy").stat().st_mtime_ns == finished
    assert not (tmp_path / f"{NEW_MOUSE}.partial").exists()
    assert [r.fingerprint for r in open_store(tmp_path)] == [r.fingerprint for r in recordings]
    assert check_store(tmp_path) == []


def test_a_store_stays_readable_when_adding_to_it_is_interrupted(raw_folders, tmp_path):
    convert(raw_folders[:1], tmp_path)
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(raw_folders, tmp_path, on_progress=interrupt)
    (recording,) = open_store(tmp_path)
    assert_equals_raw(recording, raw_folders[0])
    assert not (tmp_path / f"{NEW_MOUSE}.partial").exists()


def test_two_that_convert_into_one_store_take_turns(raw_folders, recordings, tmp_path):
    seen = []

    def convert_once(_):
        return convert(raw_folders, tmp_path, on_progress=seen.append)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(convert_once, range(2))
    assert first == second
    assert len(seen) == sum(len(plan_trials(recording.session)) for recording in recordings) + 2
    assert [r.fingerprint for r in open_store(tmp_path)] == [r.fingerprint for r in recordings]


SCRIPT = Path(data.__file__).with_name("convert.py")


def test_the_script_runs_from_anywhere(raw_folders, tmp_path):
    # Another process: there, the script's own folder comes first on sys.path.
    command = [sys.executable, SCRIPT, raw_folders[0].parent, "--to", tmp_path / "store"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=50, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for recording in open_store(tmp_path / "store"):
        counts = [NUM_NEURONS[recording.session], len(recording.trials)]
        row = next(
            line for line in done.stdout.splitlines() if line.startswith(f"\u2502 {recording.session}")
        )
        assert [int(cell) for cell in row.split("\u2502")[2:4]] == counts


@pytest.fixture
def run_script(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capsys.readouterr()
        return exited.value.code, captured.out + captured.err

    return run


def test_the_script_checks_a_store(recordings, tmp_path, run_script):
    store = shutil.copytree(recordings[0].store, tmp_path / "store")
    code, output = run_script("--check", store)
    assert code == 0
    assert "no broken files" in output
    with (store / OLD_MOUSE / "behavior.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    code, output = run_script("--check", store)
    assert code == 1
    assert "behavior.npy has sha256" in output
    assert "1 broken file" in output


def test_the_script_explains_what_is_wrong(tmp_path, run_script):
    code, output = run_script(tmp_path / "nowhere", "--to", tmp_path / "store")
    assert code == 1
    assert "error: " in output
    assert "nowhere does not exist" in output
    code, output = run_script("--to", tmp_path / "store")
    assert code == 2
    assert "give RAW... with --to STORE" in output
