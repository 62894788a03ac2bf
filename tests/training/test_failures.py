"""What goes wrong in a run ends it with a reason, and never with a score."""

import errno
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_runs import tiny_spec

from data.recording import open_store
from models.encoder import Encoder
from training.checkpoint import load_checkpoint
from training.device import ComputeConfig
from training.micro_batch import fitting_micro_batch, is_out_of_memory
from training.predict import score_trials
from training.ranks import Ranks
from training.results import Outcome
from training.run import run

CPU = torch.device("cpu")


@contextmanager
def limited_clips(most, *, error):
    """A device on which no more than ``most`` clips fit at a time in training."""
    original = Encoder.forward

    def forward(self, video, *signals, session):
        if self.training and len(video) > most:
            raise error
        return original(self, video, *signals, session=session)

    Encoder.forward = forward
    try:
        yield
    finally:
        Encoder.forward = original


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_step_that_does_not_fit_is_redone_exactly_in_smaller_parts(recordings, tmp_path, error):
    spec = tiny_spec(epochs=1)
    expected = run(replace(spec, compute=ComputeConfig(micro_batch=1)), recordings, tmp_path / "by_one")
    with limited_clips(1, error=error):
        result = run(spec, recordings, tmp_path / "run")
    assert result.outcome is Outcome.FINISHED, result.error
    one, other = (load_checkpoint(r.checkpoint)[0]["encoder"] for r in (expected, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batch_norm_statistics_count_a_redone_step_once(recordings, tmp_path):
    spec = tiny_spec("factorized", epochs=1)
    expected = run(replace(spec, compute=ComputeConfig(micro_batch=1)), recordings, tmp_path / "by_one")

    calls = []

    def fails_late(*args, original=torch.Tensor.backward, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return original(*args, **kwargs)

    backward, torch.Tensor.backward = torch.Tensor.backward, fails_late
    try:
        result = run(replace(spec, compute=ComputeConfig(micro_batch=2)), recordings, tmp_path / "run")
    finally:
        torch.Tensor.backward = backward
    one, other = (load_checkpoint(r.checkpoint)[0]["encoder"] for r in (expected, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_clip_that_does_not_fit_alone_makes_the_run_infeasible(recordings, tmp_path):
    with limited_clips(0, error=MemoryError("nothing left")):
        result = run(tiny_spec(), recordings, tmp_path / "run")
    assert result.outcome is Outcome.INFEASIBLE
    assert result.score is None
    assert "nothing left" in result.error


def test_other_runtime_errors_are_not_taken_for_missing_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.timeout(120)
def test_a_process_with_too_little_memory_says_so_and_is_not_killed(recordings, tmp_path):
    script = """
import resource, sys
from pathlib import Path
import torch
from training_runs import tiny_spec
from data.recording import open_store
from dataclasses import replace
from training.run import run
torch.set_num_threads(1)
spec = tiny_spec("factorized", epochs=1)
recordings = open_store(Path(sys.argv[1]))
run(spec, recordings, Path(sys.argv[2]) / "warm")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10 * 2**20,) * 2)
wide = replace(spec, model=replace(spec.model, channels=(512, 512)))
result = run(wide, recordings, Path(sys.argv[2]) / "wide")
print(result.outcome, result.score, result.error)
"""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(recordings[0].store), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.startswith("infeasible None"), done.stdout + done.stderr


def test_the_micro_batch_follows_from_the_memory_that_is_free(monkeypatch):
    spec = tiny_spec("factorized")
    spec = replace(spec, loader=replace(spec.loader, batch_size=8))
    sizes = []
    for free in (10**12, 10**7, 10**5):
        monkeypatch.setattr("training.micro_batch.free_memory_bytes", lambda _, free=free: free)
        sizes.append(fitting_micro_batch(spec, {"a": 5, "b": 7}, (36, 64), device=CPU))
    assert sizes[0] == 8
    assert 1 <= sizes[1] < 8
    assert sizes[2] == 1
    chosen = replace(spec, compute=ComputeConfig(micro_batch=3))
    assert fitting_micro_batch(chosen, {"a": 5}, (36, 64), device=CPU) == 3


def test_a_full_disk_fails_the_run_and_leaves_the_last_good_state(recordings, tmp_path, monkeypatch):
    uninterrupted = run(tiny_spec(), recordings, tmp_path / "whole")
    from training import checkpoint

    saves, original = [], checkpoint.torch.save

    def save(state, file):
        saves.append(file)
        if len(saves) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, file)

    monkeypatch.setattr("training.checkpoint.torch.save", save)
    result = run(tiny_spec(), recordings, tmp_path / "run")
    monkeypatch.undo()
    assert result.outcome is Outcome.FAILED
    assert result.score is None
    assert "No space left" in result.error
    resumed = run(tiny_spec(), recordings, tmp_path / "run")
    assert resumed.score == uninterrupted.score


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting takes root")
def test_a_disk_that_is_really_full_fails_the_run(recordings, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        result = run(tiny_spec("factorized"), recordings, small / "run")
        left = list((small / "run" / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert result.outcome is Outcome.FAILED
    assert "No space left" in result.error
    assert [path.name for path in left if not path.name.startswith("encoder")] == []


@pytest.mark.parametrize("kind", ["encoder", "state"])
def test_damaged_files_of_the_newest_epoch_cost_one_epoch(recordings, tmp_path, monkeypatch, kind):
    # Every epoch improves, so that each of them keeps an encoder of its own.
    rising = itertools.count(1)
    monkeypatch.setattr(
        "training.fit.score_trials",
        lambda *args, **kwargs: replace(score_trials(*args, **kwargs), single_trial=float(next(rising))),
    )
    spec = tiny_spec("factorized", epochs=4)
    uninterrupted = run(spec, recordings, tmp_path / "whole")
    stopped = run(spec, recordings, tmp_path / "run", on_epoch=lambda report: report.epoch < 2)
    assert stopped.outcome is Outcome.PRUNED
    newest = tmp_path / "run" / "checkpoints" / f"{kind}-0002"
    (newest / "state.pt").write_bytes(b"cut short")
    epochs = []
    result = run(
        spec, recordings, tmp_path / "run", on_epoch=lambda report: epochs.append(report.epoch) or True
    )
    assert epochs == [2, 3, 4]
    one, other = (load_checkpoint(r.checkpoint)[0]["encoder"] for r in (uninterrupted, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_all_states_damaged_is_said_and_nothing_is_overwritten(recordings, tmp_path):
    run(tiny_spec(), recordings, tmp_path / "run", on_epoch=lambda report: report.epoch < 2)
    for state in (tmp_path / "run" / "checkpoints").glob("state-*"):
        (state / "state.pt").write_bytes(b"")
    result = run(tiny_spec(), recordings, tmp_path / "run")
    assert result.outcome is Outcome.FAILED
    assert "damaged; remove the folder" in result.error


def test_another_run_or_other_recordings_do_not_go_on_from_a_state(recordings, tmp_path):
    run(tiny_spec(), recordings, tmp_path / "run", on_epoch=lambda report: report.epoch < 2)
    other = run(tiny_spec(seed=6), recordings, tmp_path / "run")
    assert other.outcome is Outcome.FAILED
    assert "seed is 6" in other.error
    assert "was written with 5" in other.error
    fewer = run(tiny_spec(), recordings[:1], tmp_path / "run")
    assert fewer.outcome is Outcome.FAILED
    assert recordings[1].session in fewer.error
    moved = run(tiny_spec(compute=ComputeConfig(micro_batch=3)), recordings, tmp_path / "run")
    assert moved.outcome is Outcome.FINISHED, moved.error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split.fold": None}, "without hold-out trials"),
        ({"split.tiers": ("live_test_bonus",)}, "no trial with responses"),
        ({"distillation.teacher": "/nowhere"}, "does not exist"),
        ({"compute.device": "cuda:7"}, "try cpu"),
    ],
)
def test_what_is_missing_is_named(recordings, tmp_path, change, words):
    from training.names import with_values

    if "compute.device" in change and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that device")
    result = run(with_values(tiny_spec(), change), recordings, tmp_path / "run")
    assert result.outcome is Outcome.FAILED
    assert result.score is None
    assert words in result.error


def test_no_recordings_fail(tmp_path):
    result = run(tiny_spec(), [], tmp_path / "run")
    assert result.outcome is Outcome.FAILED
    assert "at least one session" in result.error


def _run_rank(rank, store, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ranks, recordings, folder = Ranks.current(), open_store(Path(store)), Path(folder)
    spec = tiny_spec(epochs=2)
    spec = replace(spec, loader=replace(spec.loader, batch_size=4))
    results = {}

    small_parts = replace(spec, compute=ComputeConfig(micro_batch=2))
    with limited_clips(1 if rank else 9, error=MemoryError()):
        results["memory"] = run(small_parts, recordings, folder / "memory", ranks=ranks)

    run(spec, recordings, folder / "resume", ranks=ranks, on_epoch=lambda report: report.epoch < 1)
    results["resume"] = run(spec, recordings, folder / "resume", ranks=ranks)
    results["whole"] = run(spec, recordings, folder / "whole", ranks=ranks)

    import training.checkpoint

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if rank == 0:
        training.checkpoint.torch.save = full
    results["disk"] = run(spec, recordings, folder / "disk", ranks=ranks)
    plain = {
        name: {"outcome": result.outcome, "score": result.score, "error": result.error}
        for name, result in results.items()
    }
    (folder / f"{rank}.json").write_text(json.dumps(plain))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(recordings, tmp_path_factory):
    """What the first and the second of two processes say of the same runs; started once for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_run_rank, args=(str(recordings[0].store), str(folder), port), nprocs=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {name: (first[name], second[name]) for name in first}


@pytest.mark.timeout(240)
def test_memory_that_runs_out_in_one_process_halves_the_parts_in_both(two_ranks):
    first, second = two_ranks["memory"]
    assert first["outcome"] == second["outcome"] == "finished", first["error"] or second["error"]
    assert first["score"] == second["score"]


@pytest.mark.timeout(240)
def test_a_full_disk_of_the_first_process_ends_both_with_the_reason(two_ranks):
    for result in two_ranks["disk"]:
        assert result["outcome"] == "failed"
        assert result["score"] is None
        assert "No space left" in result["error"]


@pytest.mark.timeout(240)
def test_two_processes_go_on_from_a_state_of_two(two_ranks):
    first, second = two_ranks["resume"]
    assert first["outcome"] == second["outcome"] == "finished", first["error"]
    assert first["score"] == second["score"] == two_ranks["whole"][0]["score"]
