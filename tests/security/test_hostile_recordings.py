"""Recordings made to do harm are refused in words; no code runs, nothing is written elsewhere."""

import json
import os
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import deep_json, npy, pickled_array, saved, zip_of
from raw_recordings import NEW_MOUSE, OLD_MOUSE

from data.array_files import StoreError
from data.recording import RecordingError, open_store
from data.sensorium import read_raw
from data.sources import open_recordings
from data.store import check_store, read_manifest


@pytest.fixture
def mouse(raw_folders, tmp_path):
    """A copy of the new mouse, to be broken."""
    return shutil.copytree(raw_folders[1], tmp_path / "raw" / NEW_MOUSE)


def read_everything(path):
    for _ in read_raw(path).read_trials():
        pass


def replace_bytes(mouse, name, content):
    (mouse / name).unlink()
    (mouse / name).write_bytes(content)


VIDEO, RESPONSES = "data/videos/3.npy", "data/responses/3.npy"
GOOD_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n"

RAW = {
    "header that claims 4 GB of itself": (
        VIDEO,
        npy(GOOD_HEADER, length=2**32 - 1, version=2),
        "header of 4294967295 bytes",
    ),
    "array that claims 8 TB": (
        VIDEO,
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }\n"),
        "is truncated",
    ),
    "shape whose product overflows": (
        VIDEO,
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }\n"),
        "is truncated",
    ),
    "negative shape": (
        VIDEO,
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2, -2), }\n", b"0" * 32),
        "is (truncated|too long)",
    ),
    "code in the header": (
        VIDEO,
        npy("__import__('os').system('touch /tmp/proof')\n"),
        "unreadable header",
    ),
    "deeply nested header": (VIDEO, npy("(" * 4900 + ")" * 4900 + "\n"), "unreadable header"),
    "element type with fields of the same name": (
        VIDEO,
        npy("{'descr': " + repr([("a", "<f4")] * 300) + ", 'fortran_order': False, 'shape': (2, 2), }\n"),
        "unreadable header",
    ),
    "text instead of numbers": (RESPONSES, saved(np.full((7, 66), "x")), "must be floating point"),
    "complex numbers": (RESPONSES, saved(np.zeros((7, 66), dtype=complex)), "must be floating point"),
    "empty file": (VIDEO, b"", "is not a .npy file"),
    "version from the future": (VIDEO, npy(GOOD_HEADER, version=3), "npy version 3"),
    "too many bytes": (VIDEO, saved(np.zeros((12, 20, 66), np.float32)) + b"more", "is too long"),
    "responses of other neurons": (RESPONSES, saved(np.ones((9, 66))), "has shape"),
    "responses of two dimensions too many": (RESPONSES, saved(np.ones((1, 1, 7, 66))), "has shape"),
    "video of not-a-number only": (VIDEO, saved(np.full((12, 20, 66), np.nan)), "no valid frame"),
    "responses of infinity": (RESPONSES, saved(np.full((7, 66), np.inf)), "infinite values"),
    "not-a-number in the middle": (
        RESPONSES,
        saved(np.where(np.arange(66) == 30, np.nan, 1.0) * np.ones((7, 66))),
        "NaN in the middle",
    ),
    "video that is no grey levels": (VIDEO, saved(np.full((12, 20, 66), 1e30)), "grey levels"),
    "tiers that are numbers": ("meta/trials/tiers.npy", saved(np.arange(5)), "list of strings"),
    "unit ids that repeat": ("meta/neurons/unit_ids.npy", saved(np.zeros(7, int)), "more than once"),
    "coordinates of infinity": (
        "meta/neurons/cell_motor_coordinates.npy",
        saved(np.full((7, 3), np.inf)),
        "finite numbers",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_a_hostile_file_of_a_mouse_is_refused(mouse, case):
    name, content, message = RAW[case]
    replace_bytes(mouse, name, content)
    with pytest.raises(RecordingError, match=message) as caught:
        read_everything(mouse)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [VIDEO, RESPONSES, "meta/trials/tiers.npy", "meta/neurons/unit_ids.npy"])
def test_pickled_objects_are_never_loaded(mouse, tmp_path, name):
    (mouse / name).unlink()
    pickled_array(mouse / name, tmp_path / "proof")
    with pytest.raises(RecordingError, match="pickled objects, which are never loaded"):
        read_everything(mouse)
    assert not (tmp_path / "proof").exists()


def test_links_and_pipes_in_place_of_files_are_refused(mouse, tmp_path):
    (tmp_path / "secret").write_text("top secret")
    for name, make in {
        VIDEO: lambda path: path.symlink_to(tmp_path / "secret"),
        RESPONSES: os.mkfifo,
        "data/behavior/3.npy": lambda path: path.symlink_to(path),
        "data/pupil_center/3.npy": lambda path: path.symlink_to("/dev/zero"),
    }.items():
        (mouse / name).unlink()
        make(mouse / name)
    with pytest.raises(RecordingError) as caught:
        read_everything(mouse)
    message = str(caught.value)
    assert f"{VIDEO} is not a .npy file" in message
    for array in ("responses", "behavior", "pupil_center"):
        assert f"data/{array}/ has no file for trials 3" in message
    assert "top secret" not in message


def link(member):
    member.external_attr = 0o120777 << 16


def encrypted(member):
    member.flag_bits |= 1


def plain(member):
    del member


ZIPS = {
    "out of the folder": (f"{NEW_MOUSE}/../../evil.npy", b"x", plain, "leads out of the folder"),
    "absolute": ("/etc/evil", b"x", plain, "leads out of the folder"),
    "windows drive": ("C:/evil", b"x", plain, "leads out of the folder"),
    "backslashes": (f"{NEW_MOUSE}\\..\\..\\evil", b"x", plain, "leads out of the folder"),
    "link for a file": (f"{NEW_MOUSE}/data/videos/99.npy", b"/etc/passwd", link, "link|extra files 99.npy"),
    "a file twice": (f"{NEW_MOUSE}/{VIDEO}", b"x", plain, "twice"),
    "a second mouse": (f"{OLD_MOUSE}/data/videos/0.npy", b"x", plain, "exactly one"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("case", ZIPS)
def test_a_hostile_zip_is_refused(raw_folders, tmp_path, case):
    name, content, edit, message = ZIPS[case]
    path = zip_of(raw_folders[1], tmp_path / "mouse.zip", changes=[(name, content, edit)])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(RecordingError, match=message):
        read_everything(path)
    assert set(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused_before_it_is_unpacked(raw_folders, tmp_path):
    import resource

    path = zip_of(raw_folders[1], tmp_path / "mouse.zip")
    zeros = bytes(2**24)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        header = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 67108864), }\n")
        with archive.open(f"{NEW_MOUSE}/data/behavior/99.npy", "w", force_zip64=True) as file:
            file.write(header)
            for _ in range(32):
                file.write(zeros)
    assert path.stat().st_size < 2**23
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RecordingError, match=r"extra files 99\.npy"):
        read_everything(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes


def test_a_zip_whose_member_is_longer_than_it_says_is_refused(raw_folders, tmp_path):
    path = zip_of(raw_folders[1], tmp_path / "mouse.zip")
    content = path.read_bytes()
    size = len((raw_folders[1] / VIDEO).read_bytes())
    # In the directory at the end only: what is in front of the data still tells the truth.
    at = content.rindex(f"{NEW_MOUSE}/{VIDEO}".encode()) - 46 + 24
    assert int.from_bytes(content[at : at + 4], "little") == size
    path.write_bytes(content[:at] + (size - 100).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(RecordingError, match=VIDEO):
        read_everything(path)


def test_encrypted_and_cut_zips_are_refused(raw_folders, tmp_path):
    path = zip_of(raw_folders[1], tmp_path / "mouse.zip")
    content = bytearray(path.read_bytes())
    at = content.rindex(f"{NEW_MOUSE}/{VIDEO}".encode()) - 46 + 8
    content[at] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(RecordingError, match="is encrypted"):
        read_everything(tmp_path / "locked.zip")
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecordingError, match="cannot be read as a zip"):
        read_everything(tmp_path / "cut.zip")


@pytest.fixture
def store(recordings, tmp_path):
    """A copy of the store of both mice, to be broken; and a file beside it that nobody may read."""
    (tmp_path / "outside").write_text("secret")
    return shutil.copytree(recordings[0].store, tmp_path / "store")


def change_manifest(store, change):
    path = store / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_session(content, name):
    content["sessions"][name] = content["sessions"].pop(NEW_MOUSE)
    content["sessions"][name]["session"] = name


def rename_file(content, name):
    files = content["sessions"][NEW_MOUSE]["files"]
    files[name] = files.pop("videos.npy")


MANIFESTS = {
    "session that leads out": lambda content: rename_session(content, "../store"),
    "session with an absolute path": lambda content: rename_session(content, "/etc"),
    "empty session": lambda content: rename_session(content, ""),
    "session with a line break": lambda content: rename_session(content, "a\nb"),
    "session entry of another name": lambda content: content["sessions"][NEW_MOUSE].update(session="../.."),
    "file that leads out": lambda content: rename_file(content, "../../outside"),
    "absolute file": lambda content: rename_file(content, "/etc/passwd"),
    "table that leads out": lambda content: content["tables"]["trials"].update(path="../outside"),
    "absolute table": lambda content: content["tables"]["trials"].update(path="/etc/passwd"),
    "table that is a number": lambda content: content["tables"]["trials"].update(path=7),
    "object element type": lambda content: content["sessions"][NEW_MOUSE]["files"]["videos.npy"].update(
        dtype="object"
    ),
    "size that is text": lambda content: content["sessions"][NEW_MOUSE]["files"]["videos.npy"].update(
        size="big"
    ),
    "negative shape": lambda content: content["sessions"][NEW_MOUSE]["files"]["videos.npy"].update(
        shape=[-1, 2, 3]
    ),
    "sessions that are a list": lambda content: content.update(sessions=["a"]),
    "unknown field of a file": lambda content: content["sessions"][NEW_MOUSE]["files"]["videos.npy"].update(
        extra=1
    ),
    "another format": lambda content: content.update(format="pickle"),
    "a version from the future": lambda content: content.update(format_version=99),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_hostile_manifest_is_refused(store, case):
    change_manifest(store, MANIFESTS[case])
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_store(store)


@pytest.mark.parametrize("text", [deep_json(), "{}", "[]", "\x00", '{"format": "striate-store"', "NaN"])
def test_a_manifest_that_is_no_manifest_is_refused(store, text):
    (store / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_store(store)


def test_a_session_file_cannot_lead_out_either(store):
    # Read when a conversion goes on.
    from data.store import finished_sessions

    path = store / NEW_MOUSE / "session.json"
    content = json.loads(path.read_text())
    content["session"] = "../outside"
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"session\.json"):
        finished_sessions(store)


def read_store(store):
    for recording in open_store(store):
        for trial in recording.trials:
            recording.video(trial)
            recording.responses(trial)


def change_trials(store, change):
    name = json.loads((store / "manifest.json").read_text())["tables"]["trials"]["path"]
    table = pq.read_table(store / name, partitioning=None)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), store / name)


@pytest.mark.parametrize(
    "change",
    [
        {"row": -5},
        {"row": 10**12},
        {"video_row": 10**12},
        {"num_frames": 10**9},
        {"num_frames": -1},
        {"video_session": "../outside"},
        {"tier": "everything"},
        {"stimulus": "exec"},
    ],
)
def test_a_hostile_table_of_trials_is_refused(store, change):
    change_trials(store, lambda row: row.update(change))
    with pytest.raises(StoreError, match=r"but must (be|have)"):
        read_store(store)


def test_a_table_that_is_no_table_is_refused(store):
    name = json.loads((store / "manifest.json").read_text())["tables"]["trials"]["path"]
    (store / name).write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(StoreError, match="not a table of trials"):
        open_store(store)
    shutil.copyfile(store / NEW_MOUSE / "trials.parquet", store / name)
    (store / NEW_MOUSE / "neurons.parquet").write_bytes(
        bytes((store / NEW_MOUSE / "neurons.parquet").stat().st_size)
    )
    with pytest.raises(StoreError, match="neurons"):
        open_store(store)


def test_an_array_that_was_exchanged_is_refused(store, tmp_path):
    path = store / NEW_MOUSE / "responses.npy"
    size = path.stat().st_size
    path.unlink()
    pickled_array(path, tmp_path / "proof")
    with path.open("ab") as file:
        file.write(bytes(size - path.stat().st_size))
    (recording,) = (each for each in open_store(store) if each.session == NEW_MOUSE)
    labelled = next(trial for trial in recording.trials if trial.has_responses)
    with pytest.raises(StoreError, match=r"responses\.npy"):
        recording.responses(labelled)
    assert not (tmp_path / "proof").exists()


def test_one_changed_byte_is_found_by_its_hash(store):
    path = store / NEW_MOUSE / "videos.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = check_store(store)
    assert "sha256" in problem
    assert str(path) in problem


def test_a_mouse_with_a_hostile_name_makes_no_folder_elsewhere(raw_folders, tmp_path):
    (tmp_path / "raw").mkdir()
    zip_of(raw_folders[1], tmp_path / "raw" / "..zip")
    with zipfile.ZipFile(tmp_path / "raw" / "evil.zip", "w") as archive:
        for file in sorted(raw_folders[1].rglob("*")):
            if file.is_file():
                archive.write(file, f"../{file.relative_to(raw_folders[1]).as_posix()}")
    with pytest.raises(RecordingError):
        open_recordings([tmp_path / "raw" / "evil.zip"], cache=tmp_path / "cache")
    assert not list((tmp_path).glob("cache/*/*/videos.npy"))


def test_a_manifest_is_read_as_it_was_written(store):
    # The checks above must not refuse what is right.
    assert set(read_manifest(store).sessions) == {OLD_MOUSE, NEW_MOUSE}
