"""Members over Ray: the same as in one process, also when a process is killed."""

import os
import signal

import pytest
from tiny_builds import build, tiny_members, tiny_plan

from ensembles.builder import Progress
from ensembles.cluster import ClusterConfig, make_on_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]


def maker_pids():
    import psutil

    own = os.getpid()
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "ray::_Maker" in " ".join(process.info["cmdline"] or [])
        # Others may use Ray on this machine.
        and any(parent.pid == own for parent in process.parents())
    ]


def test_members_made_on_ray_are_those_made_here_also_after_a_kill(recordings, tmp_path):
    members = tiny_members(3, epochs=4)
    here = build(tiny_plan(tmp_path / "here", members), recordings)
    killed, epochs, ended = [], [], []

    def on_epoch(name, report):
        epochs.append((name, report.epoch))
        if not killed:
            pids = maker_pids()
            assert pids
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    def executor(jobs, tell):
        return make_on_ray(jobs, tell, config=ClusterConfig(slots=2))

    plan = tiny_plan(tmp_path / "ray", members)
    progress = Progress(epoch=on_epoch, ended=lambda result: ended.append(result.name))
    there = build(plan, recordings, progress=progress, executor=executor)
    assert killed
    assert sorted(ended) == ["seed-1", "seed-2", "seed-3"]
    assert all(member.outcome == "finished" for member in there.manifest.members)
    for mine, theirs in zip(here.manifest.members, there.manifest.members, strict=True):
        assert theirs.checkpoint.sha256 == mine.checkpoint.sha256
    assert there.manifest.direct == here.manifest.direct
