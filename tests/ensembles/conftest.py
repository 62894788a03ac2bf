"""Pools gathered once for the tests of blends, gate and report."""

import os

import pytest
from ensemble_pools import make_pool

from ensembles.evidence_pass import gather


@pytest.fixture
def quick_disk(monkeypatch):
    """Do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def gather_pool(tmp_path_factory):
    """A function that writes a pool's predictions and gathers its evidence."""

    def gather_pool(pool, members=None):
        folder = tmp_path_factory.mktemp("pool")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            return gather(
                pool.store(folder / "predictions"),
                members or pool.members,
                pool.recordings,
                tier="oracle",
                folder=folder / "evidence",
            )

    return gather_pool


@pytest.fixture(scope="session")
def evidence_pool(tmp_path_factory):
    """Six members of falling quality on two sessions that share six videos, and their predictions."""
    pool = make_pool(neurons=(20, 30), num_members=6, videos=6, num_frames=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        return pool, pool.store(tmp_path_factory.mktemp("six") / "predictions")


@pytest.fixture(scope="session")
def evidence(evidence_pool, tmp_path_factory):
    """Evidence of these members."""
    pool, store = evidence_pool
    return gather(
        store,
        pool.members,
        pool.recordings,
        tier="oracle",
        folder=tmp_path_factory.mktemp("six") / "evidence",
    )
