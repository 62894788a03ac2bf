import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.raw_format import RawWriter
from data.raw_trials import check_content
from data.recording import RecordingError, Stimulus, Tier
from data.sensorium import find_raw, read_raw

SESSION = "dynamic12345-6-7-Video-0a1b2c"
OTHER = "dynamic54321-1-2-Video-0a1b2c"
NUM_FRAMES, NUM_PADDED = 20, 24
UNIT_IDS = np.array([1, 2, 5])
COORDINATES = np.array([[-10, 20, 200], [0, 0, 225], [30, -40, 250]])
TIERS = [Tier.TRAIN, Tier.ORACLE, Tier.TRAIN, Tier.LIVE_MAIN, Tier.NONE, Tier.ORACLE]


def trial_arrays(index: int, *, num_frames: int = NUM_FRAMES):
    generator = np.random.default_rng([7, index])
    # Trials 1 and 5 are repeats of one video.
    seed = min(index, 5 if index != 5 else 1)
    video = np.random.default_rng([8, seed]).uniform(0, 255, size=(num_frames, 4, 6))
    return {
        "video": video,
        "behavior": generator.uniform(1, 50, size=(2, num_frames)),
        "pupil": generator.uniform(90, 150, size=(2, num_frames)),
        "responses": generator.gamma(1.0, 3.0, size=(3, num_frames)),
    }


def write_mouse(folder: Path, *, dtype=np.float32, new: bool = False, tiers=TIERS, withheld=(3,)) -> Path:
    writer = RawWriter(
        folder,
        num_padded_frames=NUM_PADDED,
        dtype=np.dtype(dtype),
        unit_ids=UNIT_IDS,
        coordinates_um=COORDINATES,
    )
    for index, tier in enumerate(tiers):
        arrays = trial_arrays(index)
        if index == 2:
            arrays["behavior"] = arrays["behavior"][:, :-1]
        if index in withheld:
            arrays["responses"] = None
        writer.write_trial(index, tier=tier, **arrays)
    writer.finish(trial_idx=[str(10 * index) for index in range(len(tiers))] if new else None)
    return folder


@pytest.fixture
def mouse(tmp_path) -> Path:
    return write_mouse(tmp_path / SESSION)


def zip_folder(folder: Path, to: Path, *, prefix: str = "", clutter: bool = True) -> Path:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            name = f"{prefix}{path.relative_to(folder.parent).as_posix()}"
            archive.write(path, name)
            if clutter and path.is_file():
                archive.writestr(f"__MACOSX/{Path(name).parent}/._{path.name}", b"resource fork")
    return to


def change(path: Path, edit) -> None:
    array = np.load(path)
    edited = edit(array)
    np.save(path, array if edited is None else edited)


def problems_of(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        list(read_raw(path).read_trials())
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("new", [False, True])
def test_a_mouse_is_read_back_as_it_was_written(tmp_path, dtype, new):
    recording = read_raw(write_mouse(tmp_path / SESSION, dtype=dtype, new=new))
    assert recording.session == SESSION
    assert recording.frame_rate_hz == 30.0
    assert recording.frame_shape == (4, 6)
    assert recording.num_padded_frames == NUM_PADDED
    assert recording.dtype == dtype
    np.testing.assert_array_equal(recording.neurons.ids, UNIT_IDS)
    np.testing.assert_array_equal(recording.neurons.coordinates_um, COORDINATES)
    assert [trial.index for trial in recording.trials] == list(range(len(TIERS)))
    assert [trial.tier for trial in recording.trials] == TIERS
    for trial in recording.trials:
        written = trial_arrays(trial.index)
        length = NUM_FRAMES - 1 if trial.index == 2 else NUM_FRAMES
        assert trial.num_frames == length
        assert trial.stimulus is Stimulus.MOVIE
        for name in ("video", "behavior", "pupil", "responses"):
            read = getattr(recording, name)(trial)
            if name == "responses" and trial.index == 3:
                assert read is None
                continue
            expected = written[name][:length] if name == "video" else written[name][:, :length]
            assert read.dtype == dtype
            np.testing.assert_array_equal(read, expected.astype(dtype))


def test_every_array_keeps_its_own_valid_length_and_withheld_responses_have_none(mouse):
    recording = read_raw(mouse)
    assert recording.valid_lengths["behavior"] == (20, 20, 19, 20, 20, 20)
    assert recording.valid_lengths["responses"] == (20, 20, 20, 0, 20, 20)
    assert recording.valid_lengths["videos"] == recording.valid_lengths["pupil_center"] == (20,) * 6
    assert [trial.has_responses for trial in recording.trials] == [True, True, True, False, True, True]


def test_repeats_of_a_video_share_an_id(mouse):
    ids = [trial.video_id for trial in read_raw(mouse).trials]
    assert ids[1] == ids[5]
    assert len(set(ids)) == 5


def test_the_pass_over_the_trials_yields_each_once_with_its_own_valid_frames(mouse):
    recording = read_raw(mouse)
    trials = list(recording.read_trials())
    assert [trial.index for trial in trials] == list(range(6))
    assert [trial.responses is None for trial in trials] == [index == 3 for index in range(6)]
    assert trials[2].num_frames == 19
    assert trials[2].video.shape == (20, 4, 6)
    assert trials[2].behavior.shape == (2, 19)
    assert dict(trials[3].valid_lengths) == {"videos": 20, "behavior": 20, "pupil_center": 20}


def test_a_finished_pass_is_remembered_and_reads_nothing_again(mouse):
    recording = read_raw(mouse)
    for _ in recording.read_trials():
        pass
    shutil.rmtree(mouse / "data")
    assert len(recording.trials) == 6
    with pytest.raises(RecordingError, match=r"behavior/0\.npy"):
        recording.behavior(recording.trials[0])


def test_official_statistics_are_handed_on(mouse):
    recording = read_raw(mouse)
    std = recording.statistics("responses", "std")
    assert std is not None
    np.testing.assert_array_equal(std, np.load(mouse / "meta/statistics/responses/all/std.npy"))
    assert std.shape == (3, NUM_PADDED)
    shutil.rmtree(mouse / "meta" / "statistics")
    assert read_raw(mouse).statistics("responses", "std") is None
    with pytest.raises(ValueError, match="name is 'var', but must be one of min"):
        recording.statistics("responses", "var")


def test_a_read_only_folder_is_read_without_writing(mouse):
    for path in [*mouse.rglob("*"), mouse]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(mouse.rglob("*"))
    assert len(read_raw(mouse).trials) == 6
    assert sorted(mouse.rglob("*")) == before
    for path in [mouse, *mouse.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_transposed_and_big_endian_files_are_read_alike(mouse):
    expected = read_raw(mouse).behavior(read_raw(mouse).trials[0])
    change(mouse / "data/behavior/0.npy", np.asfortranarray)
    change(mouse / "data/videos/1.npy", lambda array: array.astype(">f4"))
    recording = read_raw(mouse)
    np.testing.assert_array_equal(recording.behavior(recording.trials[0]), expected)
    np.testing.assert_allclose(recording.video(recording.trials[1]), trial_arrays(1)["video"], rtol=1e-6)


def test_hidden_files_and_other_folders_are_ignored(mouse):
    (mouse / "data" / "videos" / "._0.npy").write_bytes(b"resource fork")
    (mouse / "data" / "videos" / ".DS_Store").write_bytes(b"finder")
    (mouse / "meta" / "conditions").mkdir()
    assert len(read_raw(mouse).trials) == 6


@pytest.mark.parametrize("prefix", ["", "Sensorium/downloads/", "./"])
def test_a_zip_reads_like_the_folder_it_holds(mouse, tmp_path, prefix):
    archive = zip_folder(mouse, tmp_path / "any name.zip", prefix=prefix)
    zipped, folder = read_raw(archive), read_raw(mouse)
    assert zipped.session == SESSION
    assert zipped.trials == folder.trials
    for trial in folder.trials:
        np.testing.assert_array_equal(zipped.video(trial), folder.video(trial))
    np.testing.assert_array_equal(zipped.statistics("videos", "mean"), folder.statistics("videos", "mean"))
    assert {path.name for path in tmp_path.iterdir()} == {SESSION, "any name.zip"}


def test_a_zip_without_a_folder_takes_its_session_from_its_own_name(mouse, tmp_path):
    archive = tmp_path / f"{OTHER}.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in mouse.rglob("*.npy"):
            target.write(path, path.relative_to(mouse))
    assert read_raw(archive).session == OTHER


def test_recordings_travel_between_processes_by_their_path(mouse, tmp_path):
    for path in (mouse, zip_folder(mouse, tmp_path / "mouse.zip")):
        recording = read_raw(path)
        copy = pickle.loads(pickle.dumps(recording))
        assert copy.trials == recording.trials
        np.testing.assert_array_equal(copy.pupil(copy.trials[0]), recording.pupil(recording.trials[0]))


def test_a_mixed_up_folder_lists_all_its_problems_in_one_error(mouse):
    data = mouse / "data"
    (data / "videos" / "2.npy").unlink()
    (data / "behavior" / "9.npy").write_bytes((data / "behavior" / "0.npy").read_bytes())
    (data / "behavior" / "notes.txt").write_text("?")
    content = (data / "responses" / "0.npy").read_bytes()
    (data / "responses" / "0.npy").write_bytes(content[:-8])
    np.save(data / "pupil_center" / "1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(data / "responses" / "1.npy", np.zeros((4, NUM_PADDED), np.float32))
    np.save(data / "pupil_center" / "3.npy", np.zeros((2, NUM_PADDED - 1), np.float32))
    np.save(data / "behavior" / "3.npy", np.zeros((2, NUM_PADDED), np.int32))
    change(data / "behavior" / "4.npy", lambda array: array.__setitem__((0, 7), np.nan))
    change(data / "responses" / "5.npy", lambda array: array.__setitem__((2, 11), -np.inf))
    change(mouse / "meta/neurons/unit_ids.npy", lambda array: array.__setitem__(1, 1))
    change(mouse / "meta/trials/tiers.npy", lambda array: array.__setitem__(4, "live_test_bonu"))
    message = problems_of(mouse)
    assert message.startswith(f"{SESSION}: 11 problems in {mouse}")
    for expected in [
        "data/videos/ has no file for trials 2, but must have 0.npy to 5.npy",
        "data/behavior/ has extra files notes.txt, 9.npy, but must have only 0.npy to 5.npy",
        "data/responses/0.npy is truncated: it has 408 bytes, but its header (float32 (3, 24)) promises 416",
        "data/pupil_center/1.npy holds pickled objects",
        "data/responses/1.npy has shape (4, 24), but must have (3, 24)",
        "data/pupil_center/3.npy has shape (2, 23), but must have (2, 24)",
        "data/behavior/3.npy is int32, but must be floating point",
        "data/behavior/4.npy has NaN in the middle, in frames 7 of 20",
        "data/responses/5.npy has 1 infinite values, the first in frame 11",
        "unit_ids.npy has ids 1 more than once",
        "tiers.npy has tier 'live_test_bonu' for trials 4",
        "the nearest is 'live_test_bonus'",
    ]:
        assert expected in message


def test_content_problems_of_all_trials_come_in_one_error_after_the_sound_trials(mouse):
    change(mouse / "data/videos/0.npy", lambda array: array.__setitem__((1, 1, 3), np.nan))
    change(mouse / "data/responses/1.npy", lambda array: array.__setitem__((0, 0), np.inf))
    change(mouse / "data/behavior/5.npy", lambda array: array.fill(np.nan))
    yielded = []
    trials = read_raw(mouse).read_trials()
    with pytest.raises(RecordingError) as caught:
        yielded.extend(trial.index for trial in trials)
    assert yielded == [2, 3, 4]
    message = str(caught.value)
    assert "3 problems" in message
    assert "data/videos/0.npy has NaN in the middle, in frames 3 of 20" in message
    assert "data/responses/1.npy has 1 infinite values" in message
    assert "data/behavior/5.npy has no valid frame" in message


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda array: array.__setitem__((0, slice(18, None)), np.nan),
            "in the middle, in frames 18-19 of 20",
        ),
        (lambda array: array.__setitem__((1, 23), 1.0), "NaN in the middle, in frames 20-23 of 24"),
        (lambda array: array.__setitem__((slice(None), slice(5, 8)), np.nan), "in frames 5-7 of 20"),
        (lambda array: array.__setitem__((0, 22), np.inf), "infinite values, the first in frame 22"),
        (lambda array: array.__setitem__((slice(None), slice(4, None)), np.nan), "must agree within"),
    ],
)
def test_nan_belongs_after_the_end_of_a_trial_only(mouse, edit, expected):
    change(mouse / "data/pupil_center/0.npy", edit)
    message = problems_of(mouse)
    assert expected in message
    assert "1 problem " in message or "infinite" in message


@pytest.mark.parametrize("factor", [-1, 2])
def test_videos_that_are_not_grey_levels_are_refused(mouse, factor):
    change(mouse / "data/videos/0.npy", lambda array: array * factor)
    assert "must have grey levels from 0 to 255" in problems_of(mouse)


def test_a_normalized_video_is_refused(mouse):
    change(mouse / "data/videos/0.npy", lambda array: (array - 128) / 60)
    assert "data/videos/0.npy has values from -2." in problems_of(mouse)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a .npy file"),
        (b"PK\x03\x04", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 70_000, "has a header of 65535 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "has a header of 4294967295 bytes"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00", "has .npy version 3"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os') ", "has an unreadable header"),
    ],
)
def test_files_that_are_no_arrays_are_refused_without_reading_them(mouse, content, expected):
    (mouse / "data" / "behavior" / "1.npy").write_bytes(content)
    assert f"data/behavior/1.npy {expected}" in problems_of(mouse)


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing(mouse):
    path = mouse / "data" / "responses" / "1.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(3, 24), }           ", b"(3, 9999999999999), }"))
    assert path.stat().st_size == len(content)
    message = problems_of(mouse)
    assert "data/responses/1.npy" in message
    assert "truncated" in message


@pytest.mark.parametrize("name", ["tiers", "animal_id"])
def test_pickled_tables_are_refused(tmp_path, name):
    folder = write_mouse(tmp_path / SESSION, new=True)
    np.save(folder / f"meta/trials/{name}.npy", np.array(["train"] * 6, dtype=object), allow_pickle=True)
    assert f"meta/trials/{name}.npy holds pickled objects" in problems_of(folder)


def test_two_sessions_in_one_folder_are_refused(tmp_path):
    folder = write_mouse(tmp_path / SESSION, new=True)
    change(folder / "meta/trials/animal_id.npy", lambda array: array.__setitem__(2, 999))
    change(folder / "meta/trials/scan_idx.npy", lambda array: array.fill(3))
    message = problems_of(folder)
    assert "animal_id.npy has 12345, 999, but must have one value" in message
    assert "scan_idx.npy has 3, but must have 7 as the folder's name has" in message


def test_a_folder_without_tables_lists_what_is_missing(mouse):
    shutil.rmtree(mouse / "meta")
    message = problems_of(mouse)
    for name in ("trials/tiers", "neurons/unit_ids", "neurons/cell_motor_coordinates"):
        assert f"meta/{name}.npy is missing" in message


def test_coordinates_of_another_number_of_neurons_are_refused(mouse):
    np.save(mouse / "meta/neurons/cell_motor_coordinates.npy", COORDINATES[:2])
    assert "has 3 unit_ids and 2 cell_motor_coordinates" in problems_of(mouse)


def test_truncated_statistics_are_refused(mouse):
    path = mouse / "meta/statistics/responses/all/std.npy"
    path.write_bytes(path.read_bytes()[:-4])
    assert "meta/statistics/responses/all/std.npy is truncated" in problems_of(mouse)


def test_a_truncated_zip_says_how_to_get_it_again(mouse, tmp_path):
    archive = zip_folder(mouse, tmp_path / "mouse.zip")
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(RecordingError, match=r"mouse\.zip cannot be read as a zip .*download"):
        read_raw(archive)


def test_a_damaged_zip_member_is_found_by_its_checksum(mouse, tmp_path):
    archive = tmp_path / "mouse.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in mouse.rglob("*.npy"):
            target.write(path, path.relative_to(mouse.parent))
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as source:
        offset = source.getinfo(f"{SESSION}/data/behavior/0.npy").header_offset
    content[offset + 30 + len(f"{SESSION}/data/behavior/0.npy") + 200] ^= 1
    archive.write_bytes(content)
    assert "data/behavior/0.npy is damaged: Bad CRC-32" in problems_of(archive)


@pytest.mark.parametrize("name", ["../a.npy", "/etc/a.npy", "a/../../b.npy", "C:\\x.npy", "..\\x.npy"])
def test_zip_members_that_lead_out_of_their_folder_are_refused(mouse, tmp_path, name):
    archive = zip_folder(mouse, tmp_path / "mouse.zip")
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr(name, b"x")
    message = problems_of(archive)
    assert "1 problem in" in message
    assert "leads out of the folder" in message


def test_a_zip_with_two_mice_or_none_is_refused(mouse, tmp_path):
    archive = tmp_path / "mice.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("readme.txt", "nothing")
    with pytest.raises(RecordingError, match="holds mouse folders none, but must hold exactly one"):
        read_raw(archive)
    with zipfile.ZipFile(archive, "w") as target:
        target.write(mouse / "meta/trials/tiers.npy", "a/meta/trials/tiers.npy")
        target.write(mouse / "meta/trials/tiers.npy", "b/meta/trials/tiers.npy")
    with pytest.raises(RecordingError, match="'a/', 'b/'"):
        read_raw(archive)


def test_recordings_are_found_in_folders_zips_and_folders_of_them(mouse, tmp_path):
    other = write_mouse(tmp_path / "more" / OTHER)
    zipped = zip_folder(other, tmp_path / "more" / f"{OTHER}.zip")
    lone = zip_folder(mouse, tmp_path / "more" / "lone.zip")
    (tmp_path / "more" / "lone.zip.partial").write_bytes(b"")
    assert find_raw([tmp_path]) == [mouse, other, lone]
    assert find_raw([mouse]) == [mouse]
    assert find_raw([zipped]) == [zipped]
    assert find_raw([zipped, other, mouse, mouse]) == [mouse, other]


def test_a_place_without_recordings_says_what_was_looked_for(tmp_path):
    with pytest.raises(RecordingError, match=re.escape(f"{tmp_path} has no recording")):
        find_raw([tmp_path])
    with pytest.raises(RecordingError, match="does not exist"):
        find_raw([tmp_path / "nowhere"])
    with pytest.raises(RecordingError, match="does not exist"):
        read_raw(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(5))
def test_valid_lengths_and_problems_agree_with_a_loop_over_the_frames(seed):
    generator = np.random.default_rng(seed)
    for _ in range(200):
        array = generator.normal(size=(int(generator.integers(1, 4)), 8)).astype(np.float32)
        array[:, int(generator.integers(0, 9)) :] = np.nan
        for _ in range(int(generator.integers(0, 3))):
            value = generator.choice([np.nan, np.inf, -np.inf, 1.0])
            array[int(generator.integers(len(array))), int(generator.integers(8))] = value
        ended = [all(np.isnan(value) for value in array[:, frame]) for frame in range(8)]
        expected = max((frame + 1 for frame in range(8) if not ended[frame]), default=0)
        has_nan = any(np.isnan(array[:, frame]).any() for frame in range(expected))
        has_infinity = any(np.isinf(array[:, frame]).any() for frame in range(8))
        length, problems = check_content("x.npy", array)
        assert length == expected
        assert any("NaN in the middle" in problem for problem in problems) == has_nan
        assert any("infinite" in problem for problem in problems) == has_infinity
        assert any("no valid frame" in problem for problem in problems) == (expected == 0)
