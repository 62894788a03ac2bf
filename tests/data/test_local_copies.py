"""Copies of a store on a machine's own disk."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest

from data.array_files import StoreError
from data.local_copies import local_store
from data.recording import open_store
from data.store import check_store


@pytest.fixture
def store(recordings, tmp_path):
    return shutil.copytree(recordings[0].store, tmp_path / "storage" / "store")


def test_without_a_folder_for_copies_a_store_is_read_where_it_is(store, monkeypatch):
    monkeypatch.delenv("STRIATE_LOCAL", raising=False)
    assert local_store(store) == store


def test_a_copy_is_complete_and_the_same(store, recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("STRIATE_LOCAL", str(tmp_path / "disk"))
    copy = local_store(store)
    assert copy.is_relative_to(tmp_path / "disk")
    assert check_store(copy) == []
    shutil.rmtree(store)
    for recording, original in zip(open_store(copy), recordings, strict=True):
        assert recording.fingerprint == original.fingerprint
        for trial in recording.trials:
            np.testing.assert_array_equal(recording.video(trial), original.video(trial))


def copy_in_a_process(store, folder, results):
    results.put((str(local_store(store, folder=folder)), (folder / "stores").stat().st_ino))


def test_processes_that_ask_at_the_same_time_copy_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=copy_in_a_process, args=(store, tmp_path / "disk", results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len([path for path in (tmp_path / "disk/stores").iterdir() if path.is_dir()]) == 1


def test_a_second_call_reads_nothing_and_another_content_makes_another_copy(store, tmp_path):
    first = local_store(store, folder=tmp_path / "disk")
    made = first.stat().st_mtime_ns
    assert local_store(store, folder=tmp_path / "disk") == first
    assert first.stat().st_mtime_ns == made
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest, indent=2))
    assert local_store(store, folder=tmp_path / "disk") != first


def test_a_damaged_file_is_not_copied(store, recordings, tmp_path):
    path = store / recordings[1].session / "videos.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"videos\.npy has sha256 .* read twice"):
        local_store(store, folder=tmp_path / "disk")
    content[-1] ^= 1
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="header"):
        local_store(store, folder=tmp_path / "disk")


def test_a_copy_that_was_interrupted_is_made_anew(store, tmp_path):
    copy = local_store(store, folder=tmp_path / "disk")
    partial = copy.with_name(f"{copy.name}.partial")
    copy.rename(partial)
    (partial / "manifest.json").unlink()
    next(partial.glob("*/videos.npy")).write_bytes(b"half")
    assert local_store(store, folder=tmp_path / "disk") == copy
    assert check_store(copy) == []


def test_a_full_disk_is_said_before_anything_is_copied(store, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="has 10 bytes free"):
        local_store(store, folder=tmp_path / "disk")
