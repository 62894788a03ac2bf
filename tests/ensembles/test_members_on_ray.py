"""Members over Ray: the same as in one process, also when a process is killed."""

import os
import signal
from dataclasses import replace

import pytest
from tiny_builds import build, tiny_members, tiny_plan

from ensembles.builder import Progress
from ensembles.cluster import ClusterConfig, make_on_ray
from training.optimization import OptimizerConfig

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


def test_sigterm_ends_members_on_ray_as_ctrl_c_does(recordings, tmp_path):
    def on_epoch(name, report):
        os.kill(os.getpid(), signal.SIGTERM)

    def executor(jobs, tell):
        return make_on_ray(jobs, tell, config=ClusterConfig())

    plan = tiny_plan(tmp_path / "ended", tiny_members(1, epochs=2))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(plan, recordings, progress=Progress(epoch=on_epoch), executor=executor)
        # What follows in the same process is ended by it as well.
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not maker_pids()


def noiseless_members(count):
    """Members of which two processes draw nothing by themselves: positions stand still."""
    optimizer = OptimizerConfig(core_lr=0.003, readout_lr=1e-9, readout_weight_decay=0.0, eps=1e-5)
    return [
        replace(
            member,
            spec=replace(
                member.spec,
                model=replace(member.spec.model, position_sigma=1e-12),
                loader=replace(member.spec.loader, batch_size=4),
                optimizer=optimizer,
            ),
        )
        for member in tiny_members(count, family="vivit", epochs=1)
    ]


def test_members_trained_by_two_processes_each_are_those_of_one(recordings, tmp_path):
    members = noiseless_members(2)
    here = build(tiny_plan(tmp_path / "here", members, blend="mean"), recordings)
    events = []

    def executor(jobs, tell):
        return make_on_ray(jobs, tell, config=ClusterConfig(slots=2, workers=2))

    progress = Progress(
        epoch=lambda name, _: events.append(f"epoch of {name}"),
        ended=lambda result: events.append(f"end of {result.name}"),
    )
    plan = tiny_plan(tmp_path / "ray", members, blend="mean")
    there = build(plan, recordings, progress=progress, executor=executor)
    # One member after the other, and its predictions before the next.
    assert events == ["epoch of seed-1", "end of seed-1", "epoch of seed-2", "end of seed-2"]
    for mine, theirs in zip(here.manifest.members, there.manifest.members, strict=True):
        assert theirs.outcome == "finished"
        # Gradients are added in another order, so the last digits differ: these are not the other's members.
        assert theirs.checkpoint.sha256 != mine.checkpoint.sha256
    for metric, score in here.manifest.direct.items():
        assert there.manifest.direct[metric] == pytest.approx(score, abs=1e-3)
