"""Addresses of object storage, which would become folders named ``s3:``, are refused with the way out."""

from pathlib import Path

import pytest

from data.given import given_recordings
from data.sources import open_recordings

ADDRESSES = ["s3://bucket/striate", "gs://bucket/striate", "https://account.blob.core.windows.net/striate"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_object_storage_is_refused_as_root_recordings_and_cache(recordings, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    says = rf"is {address}, but must be a folder: mount the bucket"
    with pytest.raises(ValueError, match=says):
        given_recordings([recordings[0].store], Path(address))
    with pytest.raises(ValueError, match=says):
        open_recordings([Path(address)])
    with pytest.raises(ValueError, match=says):
        open_recordings([recordings[0].store], cache=Path(address))
    assert list(tmp_path.iterdir()) == []


def test_ordinary_paths_pass(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3").symlink_to(recordings[0].store)
    for path in (Path("s3"), tmp_path / "s3", Path("./s3")):
        assert len(open_recordings([path])) == 2
