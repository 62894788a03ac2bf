"""Precision and other switches of how a run computes: applied, taken back, and no more than rounding."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import tiny_spec

from training.checkpoint import load_checkpoint
from training.device import ComputeConfig, configured, resolve_device
from training.results import Outcome
from training.run import run

pytestmark = pytest.mark.timeout(240)


def trained(recordings, folder, family="vivit", **compute):
    reports = []
    result = run(
        tiny_spec(family, epochs=1, compute=ComputeConfig(**compute)),
        recordings,
        folder,
        on_epoch=lambda report: reports.append(report) or True,
    )
    assert result.outcome is Outcome.FINISHED, result.error
    return load_checkpoint(result.checkpoint)[0]["encoder"], reports[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_nearly_the_same_and_keeps_float32_parameters(recordings, tmp_path, precision):
    full, expected = trained(recordings, tmp_path / "full")
    half, report = trained(recordings, tmp_path / "half", precision=precision)
    assert report.loss == pytest.approx(expected.loss, rel=0.02)
    assert report.loss != expected.loss
    assert all(value.dtype == full[name].dtype for name, value in half.items())
    moved = "core.tokenizer.projection.weight"
    assert not torch.equal(half[moved], full[moved])
    # AdamW moves a parameter by its rate at most, in either precision.
    torch.testing.assert_close(half[moved], full[moved], rtol=0, atol=2 * 3 * 0.003)


def test_a_gradient_that_overflows_in_fp16_costs_its_step_and_not_the_run(recordings, tmp_path, monkeypatch):
    scales, original = [], torch.amp.GradScaler.unscale_

    def unscale(self, optimizer):
        if not scales:
            optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
        scales.append(self.get_scale())
        original(self, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", unscale)
    encoder, report = trained(recordings, tmp_path / "run", precision="fp16")
    assert scales[1] == scales[0] / 2
    assert all(bool(value.isfinite().all()) for value in encoder.values() if value.is_floating_point())
    assert math.isfinite(report.loss)


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_switches_hold_during_a_run_and_are_taken_back(recordings, tmp_path, tf32, precision):
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    seen = []
    spec = tiny_spec(epochs=1, compute=ComputeConfig(tf32=tf32, deterministic=True))
    run(
        spec,
        recordings,
        tmp_path / "run",
        on_step=lambda _: seen.append(
            (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
        ),
    )
    assert set(seen) == {(precision, True)}
    assert before == (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())


def test_switches_are_taken_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), configured(ComputeConfig(tf32=before == "highest", deterministic=True)):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_run_is_the_run(recordings, tmp_path):
    # In a process of its own: pytest's shape checks would be compiled along. The backend that traces and
    # differentiates, and leaves out the C++ compiler, which takes a minute.
    script = f"""
import functools, sys
from dataclasses import replace
from pathlib import Path
import torch
from training_runs import tiny_spec
from data.recording import open_store
from training.run import run
torch.set_num_threads(1)
compiled = []
original = torch.nn.Module.compile
def compile(self, *args, **kwargs):
    compiled.append(type(self).__name__)
    original(self, *args, backend="aot_eager", **kwargs)
torch.nn.Module.compile = compile
spec = tiny_spec("factorized", epochs=1)
recordings = open_store(Path({str(recordings[0].store)!r}))
folder = Path({str(tmp_path)!r})
plain = run(spec, recordings, folder / "plain")
fast = run(replace(spec, compute=replace(spec.compute, compile=True)), recordings, folder / "compiled")
assert fast.outcome == "finished", fast.error
assert compiled == ["FactorizedCore"], compiled
assert abs(plain.score - fast.score) < 1e-3, (plain.score, fast.score)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=220
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain, fast = (
        load_checkpoint(tmp_path / name / "checkpoints" / "encoder-0001")[0]["encoder"]
        for name in ("plain", "compiled")
    )
    assert plain.keys() == fast.keys()


def test_automatic_micro_batches_do_not_change_what_is_computed_on_a_cpu(recordings, tmp_path):
    spec = tiny_spec(epochs=1)
    assert spec.compute.micro_batch is None
    whole = run(spec, recordings, tmp_path / "auto")
    same = run(
        replace(spec, compute=ComputeConfig(micro_batch=spec.loader.batch_size)), recordings, tmp_path / "set"
    )
    assert whole.score == same.score


def test_devices_are_found_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"micro_batch is 0, but must be at least 1"):
        ComputeConfig(micro_batch=0)
