import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_runs import KILLED_EPOCHS, tiny_spec

from data.recording import open_store
from training.checkpoint import load_checkpoint
from training.device import ComputeConfig
from training.distillation import DistillationConfig
from training.encoders import load_encoder
from training.fit import fit
from training.material import Material
from training.metrics import BURN_IN_FRAMES
from training.optimization import OptimizerConfig
from training.predict import predictions, score_trials
from training.ranks import Ranks
from training.results import Outcome
from training.run import run
from training.spec import from_plain, to_plain
from training.step import GradientConfig, accumulate_gradients

CPU = torch.device("cpu")
# Several trainings in one test: seconds on a quiet machine, a minute on one that does much else.
pytestmark = pytest.mark.timeout(180)


def kept_state(result):
    return load_checkpoint(result.checkpoint)[0]["encoder"]


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("family", ["factorized", "vivit"])
def test_training_lowers_the_loss_and_leaves_a_checkpoint_that_scores_the_same(family, recordings, tmp_path):
    reports = []
    spec = tiny_spec(family, epochs=5)
    result = run(spec, recordings, tmp_path / "run", on_epoch=lambda report: reports.append(report) or True)
    assert result.outcome is Outcome.FINISHED, result.error
    assert reports[-1].loss < reports[0].loss
    assert result.score == max(report.score for report in reports)
    trained = load_encoder(result.checkpoint)
    assert trained.spec == spec
    material = Material.prepare(recordings, spec, device=CPU)
    score = score_trials(
        trained.encoder,
        recordings,
        material.choosing,
        normalizations=material.normalizations,
        inference=spec.inference,
        compute=spec.compute,
    )
    assert score.single_trial == pytest.approx(result.score, abs=1e-12)
    assert (tmp_path / "run" / "traces.png").stat().st_size > 1000


def test_the_same_seed_gives_the_same_run_to_the_bit(recordings, tmp_path):
    one, same = (run(tiny_spec(), recordings, tmp_path / name) for name in ("a", "b"))
    other = run(tiny_spec(seed=6), recordings, tmp_path / "c")
    assert one.score == same.score != other.score
    assert_same_state(kept_state(one), kept_state(same))


def test_the_score_is_the_correlation_that_numpy_computes(recordings, tmp_path):
    spec = tiny_spec("factorized", epochs=1)
    result = run(spec, recordings, tmp_path / "run")
    material = Material.prepare(recordings, spec, device=CPU)
    pairs = {recording.session: ([], []) for recording in recordings}
    for recording, _, predicted, responses in predictions(
        load_encoder(result.checkpoint).encoder,
        recordings,
        material.choosing,
        normalizations=material.normalizations,
        inference=spec.inference,
        compute=spec.compute,
    ):
        frames = responses.shape[1] - BURN_IN_FRAMES
        pairs[recording.session][0].append(predicted[:, -frames:])
        pairs[recording.session][1].append(responses[:, -frames:])
    correlations = []
    for predicted, responses in pairs.values():
        p, r = np.concatenate(predicted, axis=1), np.concatenate(responses, axis=1)
        correlations += [np.corrcoef(p[n], r[n])[0, 1] for n in range(len(p))]
    assert result.score == pytest.approx(np.mean(correlations), abs=1e-6)


def test_a_run_that_is_told_to_stop_is_pruned_with_its_score(recordings, tmp_path):
    result = run(tiny_spec(), recordings, tmp_path / "run", on_epoch=lambda report: report.epoch < 2)
    assert result.outcome is Outcome.PRUNED
    assert result.epochs == 2
    assert result.score is not None


def test_an_exploding_run_fails_with_a_reason_and_without_a_score(recordings, tmp_path):
    spec = tiny_spec(optimizer=OptimizerConfig(core_lr=1e8))
    result = run(spec, recordings, tmp_path / "run")
    assert result.outcome is Outcome.FAILED
    assert result.score is None
    assert "try a lower optimizer.core_lr" in result.error


def test_clips_longer_than_the_trials_fail_with_the_way_out(recordings, tmp_path):
    spec = tiny_spec()
    result = run(replace(spec, loader=replace(spec.loader, clip_frames=200)), recordings, tmp_path / "run")
    assert result.outcome is Outcome.FAILED
    assert "shorten clip_frames" in result.error


def test_a_spec_survives_being_written_down():
    for family in ("factorized", "vivit"):
        assert from_plain(to_plain(tiny_spec(family))) == tiny_spec(family)


def without_noise(material):
    encoder = material.build_encoder()
    for name, parameter in encoder.named_parameters():
        if name.endswith("sigma"):
            parameter.data.zero_()
            parameter.requires_grad_(False)
    return encoder


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_add_up_to_the_gradient_of_their_batch(recordings, micro_batch):
    spec = tiny_spec()
    gradients = []
    for size in (3, micro_batch):
        material = Material.prepare(
            recordings, replace(spec, compute=ComputeConfig(micro_batch=size)), device=CPU
        )
        encoder = without_noise(material).train()
        clips = next(iter(material.loader(Ranks()).epoch(0)))
        config = GradientConfig(
            loss=spec.loss,
            compute=spec.compute,
            num_trials=material.num_trials,
            micro_batch=material.micro_batch,
        )
        accumulate_gradients(encoder, material.prepare_batches(clips, seed=(0,)), config, seed=(0,))
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    whole, parts = gradients
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_a_student_learns_from_a_teacher_of_the_same_sessions(recordings, tmp_path):
    teacher = run(tiny_spec("factorized", epochs=1), recordings, tmp_path / "teacher")
    spec = tiny_spec("factorized", distillation=DistillationConfig(teacher=str(teacher.checkpoint)))
    student = run(spec, recordings, tmp_path / "student")
    alone = run(tiny_spec("factorized"), recordings, tmp_path / "alone")
    assert student.outcome is Outcome.FINISHED, student.error
    assert student.score != alone.score


def test_the_moving_average_is_what_is_scored_and_kept(recordings, tmp_path):
    averaged = run(
        tiny_spec(optimizer=OptimizerConfig(core_lr=0.003, ema_decay=0.9)), recordings, tmp_path / "averaged"
    )
    plain = run(tiny_spec(), recordings, tmp_path / "plain")
    assert averaged.outcome is Outcome.FINISHED, averaged.error
    assert averaged.score != plain.score


@pytest.mark.timeout(240)
def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_happened(recordings, tmp_path):
    # An epoch has 3 steps and about a dozen changes of the disk; these points lie in all its phases.
    points = [str(point) for point in (2, 6, 9, 11, 18, 26, 34)]
    script = Path(__file__).parents[1] / "training_runs.py"
    command = [sys.executable, str(script), str(recordings[0].store), str(tmp_path), *points]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{point} killed" for point in points], done.stderr
    uninterrupted = run(tiny_spec(epochs=KILLED_EPOCHS), recordings, tmp_path / "whole")
    first_epochs = []
    for point in points:
        epochs = []
        resumed = run(
            tiny_spec(epochs=KILLED_EPOCHS),
            recordings,
            tmp_path / point,
            on_epoch=lambda report, epochs=epochs: epochs.append(report.epoch) or True,
        )
        assert resumed.score == uninterrupted.score
        assert_same_state(kept_state(resumed), kept_state(uninterrupted))
        first_epochs.append(min(epochs))
    assert first_epochs == sorted(first_epochs)
    assert set(first_epochs) == {1, 2, 3}


def test_a_damaged_newest_state_costs_one_epoch(recordings, tmp_path):
    uninterrupted = run(tiny_spec(), recordings, tmp_path / "whole")
    run(tiny_spec(), recordings, tmp_path / "run", on_epoch=lambda report: report.epoch < 2)
    states = sorted((tmp_path / "run" / "checkpoints").glob("state-*"))
    assert len(states) == 2
    (states[-1] / "state.pt").write_bytes(b"cut short")
    assert run(tiny_spec(), recordings, tmp_path / "run").score == uninterrupted.score


def _train_rank(rank, world_size, store, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    material = Material.prepare(open_store(Path(store)), tiny_spec(epochs=1), device=CPU)
    encoder = without_noise(material)
    result = fit(encoder, material, tiny_spec(epochs=1), on_epoch=lambda _: True, ranks=Ranks.current())
    if rank == 0:
        torch.save({"state": encoder.state_dict(), "score": result.score}, out)
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.timeout(150)
def test_two_processes_train_what_one_would(recordings, tmp_path):
    store = str(recordings[0].store)
    with socket_free() as port:
        pass
    _train_rank(0, 1, store, port, tmp_path / "one.pt")
    mp.spawn(_train_rank, args=(2, store, port, tmp_path / "two.pt"), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=0, atol=1e-5)
    assert two["score"] == pytest.approx(one["score"], abs=1e-4)


class socket_free:  # noqa: N801 - reads as a function
    """A port of loopback that nobody listens on."""

    def __enter__(self):
        import socket

        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *_):
        self.socket.close()
