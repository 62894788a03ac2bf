import json
from pathlib import Path

import numpy as np
import pytest

from data.raw_format import RawWriter, statistics_over_trials
from data.recording import Tier

SESSION = "dynamic12345-6-7-Video-0a1b2c"


def make_writer(folder: Path, *, dtype=np.float32, num_padded_frames: int = 6) -> RawWriter:
    return RawWriter(
        folder,
        num_padded_frames=num_padded_frames,
        dtype=np.dtype(dtype),
        unit_ids=np.array([1, 2, 5]),
        coordinates_um=np.array([[-10, 20, 200], [0, 0, 225], [30, -40, 250]]),
    )


def write_trial(writer: RawWriter, index: int, tier: Tier, *, num_frames, value=1.0, withheld=False):
    writer.write_trial(
        index,
        tier=tier,
        video=np.full((num_frames, 4, 5), value),
        behavior=np.full((2, num_frames - 1), value),
        pupil=np.full((2, num_frames), value),
        responses=None if withheld else np.full((3, num_frames), value),
    )


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_new_mouse_folder_has_the_names_shapes_and_dtypes_of_the_data_set(tmp_path, dtype):
    writer = make_writer(tmp_path / SESSION, dtype=dtype)
    tiers = list(Tier)
    for index, tier in enumerate(tiers):
        write_trial(writer, index, tier, num_frames=5)
    writer.finish(trial_idx=["51", "12--13--14", *("0" for _ in tiers[2:])])

    folder = tmp_path / SESSION
    arrays = ["videos", "responses", "behavior", "pupil_center"]
    expected = {f"data/{name}/{index}.npy" for name in arrays for index in range(len(tiers))}
    expected |= {
        f"meta/statistics/{name}/{scope}/{statistic}.npy"
        for name in arrays
        for scope in ["all", "stimulus_frame"]
        for statistic in ["min", "max", "mean", "median", "std"]
    }
    expected |= {"meta/neurons/unit_ids.npy", "meta/neurons/cell_motor_coordinates.npy", "config.json"}
    expected |= {
        f"meta/trials/{name}.npy"
        for name in ["tiers", "trial_idx", "animal_id", "session", "scan_idx", "target_fps"]
    }
    assert all_files(folder) == expected

    shapes = {"videos": (4, 5, 6), "responses": (3, 6), "behavior": (2, 6), "pupil_center": (2, 6)}
    for name, shape in shapes.items():
        array = np.load(folder / "data" / name / "0.npy", allow_pickle=False)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        std = np.load(folder / "meta/statistics" / name / "all/std.npy", allow_pickle=False)
        assert (std.shape, std.dtype) == (shape, np.dtype(dtype))
    written = np.load(folder / "meta/trials/tiers.npy", allow_pickle=False)
    assert written.dtype == np.dtype("<U16")
    assert written.tolist() == [
        "train",
        "oracle",
        "live_test_main",
        "live_test_bonus",
        "final_test_main",
        "final_test_bonus",
        "none",
    ]
    assert np.load(folder / "meta/trials/trial_idx.npy", allow_pickle=False)[1] == "12--13--14"
    assert set(np.load(folder / "meta/trials/animal_id.npy", allow_pickle=False)) == {12345}
    coordinates = np.load(folder / "meta/neurons/cell_motor_coordinates.npy", allow_pickle=False)
    assert (coordinates.shape, coordinates.dtype.kind) == ((3, 3), "i")
    assert json.loads((folder / "config.json").read_text()) == {"links": {}}


def test_an_old_mouse_has_tiers_and_nothing_else_about_its_trials(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    write_trial(writer, 0, Tier.TRAIN, num_frames=4)
    writer.finish()
    assert [path.name for path in (tmp_path / "mouse/meta/trials").iterdir()] == ["tiers.npy"]


def test_trials_end_in_nan_and_keep_their_own_lengths(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    write_trial(writer, 0, Tier.TRAIN, num_frames=4)
    writer.finish()
    for name, valid in {"videos": 4, "responses": 4, "behavior": 3, "pupil_center": 4}.items():
        array = np.load(tmp_path / "mouse/data" / name / "0.npy")
        assert np.isfinite(array[..., :valid]).all()
        assert np.isnan(array[..., valid:]).all()


def test_withheld_responses_are_zeros_over_the_padded_length(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    write_trial(writer, 0, Tier.TRAIN, num_frames=4)
    write_trial(writer, 1, Tier.LIVE_MAIN, num_frames=4, withheld=True)
    writer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "mouse/data/responses/1.npy"), np.zeros((3, 6)))


def test_video_time_is_stored_last(tmp_path):
    writer = make_writer(tmp_path / "mouse", num_padded_frames=3)
    video = np.arange(3 * 4 * 5, dtype=np.float64).reshape(3, 4, 5)
    nothing = np.zeros((2, 3))
    writer.write_trial(
        0, tier=Tier.TRAIN, video=video, behavior=nothing, pupil=nothing, responses=np.zeros((3, 3))
    )
    writer.finish()
    stored = np.load(tmp_path / "mouse/data/videos/0.npy")
    assert stored.shape == (4, 5, 3)
    assert all(stored[y, x, t] == video[t, y, x] for t in range(3) for y in range(4) for x in range(5))


def test_statistics_are_over_train_trials_only(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    for index, value in enumerate([1.0, 2.0, 6.0]):
        write_trial(writer, index, Tier.TRAIN, num_frames=5, value=value)
    write_trial(writer, 3, Tier.ORACLE, num_frames=6, value=100.0)
    writer.finish()
    expected = {"min": 1.0, "max": 6.0, "mean": 3.0, "median": 2.0, "std": np.std([1.0, 2.0, 6.0])}
    for name, value in expected.items():
        array = np.load(tmp_path / f"mouse/meta/statistics/responses/all/{name}.npy")
        np.testing.assert_allclose(array[:, :5], value, rtol=1e-6)
        assert np.isnan(array[:, 5]).all()


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_statistics_of_unequal_trials_agree_with_numpy_in_blocks_of_any_size(tmp_path):
    generator = np.random.default_rng(0)
    stack = generator.normal(size=(4, 3, 2, 5))
    for trial, end in enumerate([3, 4, 2, 4]):
        stack[trial, ..., end:] = np.nan
        np.save(tmp_path / f"{trial}.npy", stack[trial])
    paths = [tmp_path / f"{trial}.npy" for trial in range(4)]
    for block_bytes in [1, 400, 10**6]:
        result = statistics_over_trials(paths, block_bytes=block_bytes)
        for name in ["min", "max", "mean", "median", "std"]:
            np.testing.assert_allclose(result[name], getattr(np, f"nan{name}")(stack, axis=0), rtol=1e-12)


def test_a_folder_has_its_name_only_once_it_is_complete(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    write_trial(writer, 0, Tier.TRAIN, num_frames=4)
    assert not (tmp_path / "mouse").exists()
    again = make_writer(tmp_path / "mouse")
    write_trial(again, 0, Tier.TRAIN, num_frames=4)
    again.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["mouse"]
    with pytest.raises(FileExistsError, match="exists already"):
        make_writer(tmp_path / "mouse")


def test_what_does_not_fit_is_refused_with_its_name(tmp_path):
    writer = make_writer(tmp_path / "mouse")
    with pytest.raises(ValueError, match="video of trial 3 has 7 frames, but must have at most 6"):
        write_trial(writer, 3, Tier.TRAIN, num_frames=7)
    write_trial(writer, 1, Tier.TRAIN, num_frames=4)
    with pytest.raises(ValueError, match="trial 1 is written already"):
        write_trial(writer, 1, Tier.TRAIN, num_frames=4)
    with pytest.raises(ValueError, match=r"trials \[0\] are missing"):
        writer.finish()
    with pytest.raises(ValueError, match="dtype is float16"):
        make_writer(tmp_path / "other", dtype=np.float16)
