"""Opening whatever the user gives: a store, raw folders, zips, or folders of them."""

import os
import shutil
import zipfile

import pytest
from raw_recordings import NEW_MOUSE, OLD_MOUSE, write_mouse

from data.array_files import StoreError
from data.conversion import ConversionConfig
from data.recording import RecordingError
from data.sources import default_cache, open_recordings


def test_a_store_is_opened_where_it_is(recordings, tmp_path):
    opened = open_recordings([recordings[0].store], cache=tmp_path / "cache")
    assert [r.session for r in opened] == [OLD_MOUSE, NEW_MOUSE]
    assert [r.store for r in opened] == [r.store for r in recordings]
    assert not (tmp_path / "cache").exists()


def test_raw_recordings_are_converted_once(raw_folders, recordings, tmp_path):
    seen = []
    opened = open_recordings(raw_folders, cache=tmp_path, on_progress=seen.append)
    assert [r.fingerprint for r in opened] == [r.fingerprint for r in recordings]
    assert [r.trials for r in opened] == [r.trials for r in recordings]
    assert seen
    seen.clear()
    for paths in (raw_folders[::-1], [raw_folders[0].parent]):
        again = open_recordings(paths, cache=tmp_path, on_progress=seen.append)
        assert [r.store for r in again] == [r.store for r in opened]
    assert seen == []


def test_another_choice_of_mice_or_element_types_is_another_cached_store(raw_folders, tmp_path):
    both = open_recordings(raw_folders, cache=tmp_path)
    (alone,) = open_recordings(raw_folders[:1], cache=tmp_path)
    (wide,) = open_recordings(raw_folders[:1], cache=tmp_path, config=ConversionConfig(responses="float32"))
    assert len({both[0].store, alone.store, wide.store}) == 3
    assert wide.responses(wide.trials[0]).dtype == "float32"


def test_a_changed_raw_file_is_noticed(tmp_path):
    folder = write_mouse(tmp_path / OLD_MOUSE)
    (first,) = open_recordings([folder], cache=tmp_path / "cache")
    shutil.rmtree(folder)
    write_mouse(folder, seed=1)
    (second,) = open_recordings([folder], cache=tmp_path / "cache")
    assert first.fingerprint != second.fingerprint
    os.utime(folder / "data" / "videos" / "0.npy", ns=(0, 0))
    (third,) = open_recordings([folder], cache=tmp_path / "cache")
    assert third.store != second.store
    assert third.fingerprint == second.fingerprint


def test_a_folder_with_a_zip_is_opened(raw_folders, recordings, tmp_path):
    (tmp_path / "downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "downloads" / f"{OLD_MOUSE}.zip", "w") as archive:
        for file in raw_folders[0].rglob("*.npy"):
            archive.write(file, f"{OLD_MOUSE}/{file.relative_to(raw_folders[0])}")
    (opened,) = open_recordings([tmp_path / "downloads"], cache=tmp_path / "cache")
    assert opened.fingerprint == recordings[0].fingerprint


def test_an_interrupted_conversion_into_the_cache_is_continued(raw_folders, recordings, tmp_path):
    opened = open_recordings(raw_folders, cache=tmp_path)
    (opened[0].store / "manifest.json").unlink()
    shutil.rmtree(opened[0].store / NEW_MOUSE)
    again = open_recordings(raw_folders, cache=tmp_path)
    assert [r.fingerprint for r in again] == [r.fingerprint for r in recordings]


def test_an_unfinished_store_says_how_to_finish_it(recordings, tmp_path):
    shutil.copytree(recordings[0].store / OLD_MOUSE, tmp_path / OLD_MOUSE)
    with pytest.raises(StoreError, match=r"unfinished conversion.*data/convert\.py again"):
        open_recordings([tmp_path])


def test_a_store_together_with_raw_recordings_is_refused(recordings, raw_folders):
    with pytest.raises(StoreError, match=r"must be given alone.*data/convert\.py RAW"):
        open_recordings([raw_folders[0], recordings[0].store])


def test_a_path_without_recordings_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="has no recording"):
        open_recordings([tmp_path], cache=tmp_path / "cache")
    with pytest.raises(RecordingError, match="does not exist"):
        open_recordings([tmp_path / "nowhere"], cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "striate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "striate"
