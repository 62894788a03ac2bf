"""Recordings that any test may read."""

import pytest
from raw_recordings import NEW_MOUSE, OLD_MOUSE, write_mouse

from data.conversion import convert
from data.recording import open_store


@pytest.fixture(scope="session")
def raw_folders(tmp_path_factory):
    """Two raw mouse folders, partners that saw the same videos: an old mouse of 5 neurons, a new one of 7."""
    folder = tmp_path_factory.mktemp("raw")
    return [write_mouse(folder / session) for session in (OLD_MOUSE, NEW_MOUSE)]


@pytest.fixture(scope="session")
def recordings(raw_folders, tmp_path_factory):
    """The two mice, converted to one store."""
    store = tmp_path_factory.mktemp("converted") / "store"
    convert(raw_folders, store)
    return open_store(store)


@pytest.fixture(scope="session")
def recording(recordings):
    """The first of the two mice: 5 neurons, all responses released."""
    return recordings[0]
