"""Members on two of Ray's simulated machines: both train, one is lost, none has room, one lacks a folder."""

import runpy
from pathlib import Path

import pytest
from tiny_builds import build, tiny_members, tiny_plan

from data.local_copies import VARIABLE
from data.recording import open_store
from ensembles.builder import Progress
from ensembles.cluster import ClusterConfig, make_on_ray
from ensembles.identity import BuildError
from ensembles.members import MemberJob
from ensembles.plan import plan_cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
]

SCRIPT = Path(__file__).parents[2] / "ensembles" / "build.py"
ADDRESS = "that of the fixture; Ray has been joined already"


def start_cluster():
    from ray.cluster_utils import Cluster

    for attempts_left in (2, 1, 0):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=80_000_000)
            cluster.workers = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
            break
        except Exception:
            # Ray gives each of them 30 s, which a busy machine may need longer for.
            cluster.shutdown()
            if not attempts_left:
                raise
    return cluster


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A head without cores and two machines of one core each, which copy recordings to a disk of theirs."""
    import ray

    monkeypatch = pytest.MonkeyPatch()
    # Sooner than Ray's defaults, later than a busy machine takes to answer.
    for name, value in {"period_ms": 1000, "failure_threshold": 15, "timeout_ms": 5000}.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    disk = tmp_path_factory.mktemp("disk")
    monkeypatch.setenv(VARIABLE, str(disk))
    cluster = start_cluster()
    # Only the machines' own processes copy; this one reads what it compares with where it is.
    monkeypatch.delenv(VARIABLE)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster, disk
    ray.shutdown()
    cluster.shutdown()
    monkeypatch.undo()


def test_on_a_cluster_there_are_as_many_members_at_a_time_as_it_has_room_for():
    parse_arguments = runpy.run_path(str(SCRIPT))["parse_arguments"]
    arguments = ["seeds", "factorized", "--address", "auto", "--gpus-per-member", "1", "--wait", "3"]

    def planned(*more):
        parsed = parse_arguments([*arguments, *more])
        return plan_cluster(parsed, scale="full", num_members=14)

    assert planned() == ClusterConfig(
        slots=None, cpus_per_member=4, gpus_per_member=1.0, address="auto", wait_seconds=180.0
    )
    limited = planned("--max-concurrent", "20", "--cpus-per-member", "8")
    assert (limited.slots, limited.cpus_per_member) == (14, 8.0)
    with pytest.raises(ValueError, match="slots is None, but must be a number unless"):
        ClusterConfig(slots=None)


def job_for(plan, store):
    return MemberJob(
        member=plan.members[0],
        folder=plan.member_folder(plan.members[0].name),
        store=store,
        sessions=(),
        predictions=plan.predictions,
        tiers=(),
        holdout=(),
    )


def test_recordings_that_a_machine_does_not_see_are_named_before_anything_is_trained(machines, tmp_path):
    plan = tiny_plan(tmp_path / "build")
    jobs = [job_for(plan, tmp_path / "nowhere")]
    config = ClusterConfig(slots=None, address=ADDRESS)
    with pytest.raises(BuildError, match=r"not shared by all 3 machines.*nowhere does not exist"):
        list(make_on_ray(jobs, lambda *_: None, config=config))
    assert list(plan.folder.iterdir()) == []


def test_a_build_that_no_machine_has_room_for_ends_in_words(machines, recordings, tmp_path):
    jobs = [job_for(tiny_plan(tmp_path / "build"), recordings[0].store)]
    config = ClusterConfig(slots=None, address=ADDRESS, cpus_per_member=2.0, wait_seconds=3.0)
    with pytest.raises(BuildError, match="no machine had room for a member \\(2 cores"):
        list(make_on_ray(jobs, lambda *_: None, config=config))


# The last one: it loses a machine.
def test_members_are_made_on_both_machines_and_outlive_the_loss_of_one(machines, recordings, tmp_path):
    cluster, disk = machines
    members = tiny_members(4, epochs=3)
    here = build(tiny_plan(tmp_path / "here", members), recordings)
    seen, ended, lost = [], [], []

    def on_epoch(name, _):
        seen.append(name)
        # With a core each, two members at a time are two machines at a time.
        if len(set(seen)) > len(ended) + 1 and not lost:
            lost.append(set(seen) - set(ended))
            cluster.remove_node(cluster.workers[0], allow_graceful=False)

    def executor(jobs, tell):
        return make_on_ray(jobs, tell, config=ClusterConfig(slots=None, address=ADDRESS))

    progress = Progress(epoch=on_epoch, ended=lambda result: ended.append(result.name))
    plan = tiny_plan(tmp_path / "there", members)
    there = build(plan, recordings, progress=progress, executor=executor)
    assert lost, "two members never trained at the same time"
    assert sorted(ended) == [member.name for member in members]
    for mine, theirs in zip(here.manifest.members, there.manifest.members, strict=True):
        assert theirs.outcome == "finished"
        assert theirs.checkpoint.sha256 == mine.checkpoint.sha256
    # Both read one copy; the fingerprint is that of the shared store.
    (copy,) = [path for path in (disk / "stores").iterdir() if path.is_dir()]
    assert [each.fingerprint for each in open_store(copy)] == [each.fingerprint for each in recordings]
