"""Clips of several sessions in one pass of the core: the same loss, and the batch norm of the mixed batch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from training_runs import MODELS, tiny_spec

from data.sampling import LoaderConfig
from models.cores.dwiseneuro import DwiseNeuroConfig
from training.device import ComputeConfig
from training.distillation import DistillationConfig
from training.joint import cut_parts
from training.losses import DWISENEURO_LOSS
from training.material import Material
from training.micro_batch import warn_of_batch_norm
from training.ranks import Ranks
from training.results import Outcome
from training.run import run
from training.step import GradientConfig, accumulate_gradients

CPU = torch.device("cpu")
DWISENEURO = DwiseNeuroConfig(
    canvas=(20, 20),
    stem_channels=8,
    channels=(8, 12),
    strides=(2, 1),
    expansion=2,
    squeeze=4,
    cortex_channels=(16, 32),
    drop_path=0.0,
    cortex_drop_path=0.0,
    readout_dropout=0.0,
)
SPEC = tiny_spec(
    model=DWISENEURO,
    loader=LoaderConfig(clip_frames=16, batch_size=5, order="mixed", clips_per_session=5),
    loss=DWISENEURO_LOSS,
    epochs=1,
)


@pytest.fixture
def step(recordings):
    """One step of five clips of two mice, and the encoder that starts on it."""
    return prepared(SPEC, recordings)


def prepared(spec, recordings):
    material = Material.prepare(recordings, spec, device=CPU)
    clips = next(iter(material.loader(Ranks()).epoch(0)))
    batches = material.prepare_batches(clips, seed=(0,))
    assert len(batches) == 2
    return material, material.build_encoder().train(), batches


def config_for(material, **changes):
    values = {"micro_batch": 5, "joint": True} | changes
    return GradientConfig(
        loss=material.spec.loss, compute=ComputeConfig(), num_trials=material.num_trials, **values
    )


def gradients(encoder):
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * scale, msg=name)


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def test_gradient_and_batch_statistics_are_those_of_the_mixed_batch(step, recordings):
    material, encoder, batches = step
    accumulate_gradients(encoder, batches, config_for(material), seed=(0,))
    found, statistics = gradients(encoder), dict(encoder.named_buffers())

    _, plain, _ = prepared(SPEC, recordings)
    features = plain.features(*(joined(batches, name) for name in ("video", "behavior", "pupil")))
    loss, first = 0.0, 0
    for batch in batches:
        own = features[first : first + len(batch)]
        rates = plain.read(own, batch.behavior, batch.pupil, session=batch.session)
        loss = loss + functional.poisson_nll_loss(
            rates, batch.responses, log_input=False, eps=1e-8, reduction="sum"
        )
        first += len(batch)
    (loss / 5).backward()
    assert_same(found, gradients(plain))
    for name, value in plain.named_buffers():
        torch.testing.assert_close(statistics[name], value, rtol=1e-5, atol=1e-6)


def test_session_by_session_batch_norm_would_differ(step, recordings):
    material, encoder, batches = step
    accumulate_gradients(encoder, batches, config_for(material), seed=(0,))
    _, other, _ = prepared(SPEC, recordings)
    accumulate_gradients(other, batches, config_for(material, joint=False), seed=(0,))
    name = "core.stem.weight"
    assert not torch.allclose(gradients(encoder)[name], gradients(other)[name], rtol=1e-2)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_without_batch_norm_joint_parts_of_any_size_give_the_gradient_of_single_sessions(
    recordings, micro_batch
):
    spec = replace(SPEC, model=replace(MODELS["vivit"], position_sigma=1e-12))
    material, encoder, batches = prepared(spec, recordings)
    total = accumulate_gradients(encoder, batches, config_for(material, micro_batch=micro_batch), seed=(0,))
    _, alone, _ = prepared(spec, recordings)
    expected = accumulate_gradients(alone, batches, config_for(material, joint=False), seed=(0,))
    assert total.total == pytest.approx(expected.total, rel=1e-5)
    assert (total.count, total.clips) == (expected.count, expected.clips)
    found = gradients(encoder)
    # Positions are noisy by design, and the noise differs between parts.
    assert_same(*({n: g for n, g in of.items() if "sigma" not in n} for of in (found, gradients(alone))))


def test_a_taught_step_is_the_weighted_sum_over_all_pairs(step, recordings):
    material, encoder, batches = step
    teacher = material.build_encoder().eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    ratio = 0.36
    accumulate_gradients(
        encoder, batches, config_for(material, teacher=teacher, teacher_ratio=ratio), seed=(0,)
    )
    _, plain, _ = prepared(SPEC, recordings)
    signals = [joined(batches, name) for name in ("video", "behavior", "pupil")]
    features, taught = plain.features(*signals), teacher.features(*signals).detach()
    loss, clip = 0.0, 0
    for batch in batches:
        for row in range(len(batch)):
            for session in plain.sessions:
                one = slice(clip, clip + 1)
                rates = plain.read(features[one], signals[1][one], signals[2][one], session=session)
                if session == batch.session:
                    target, weight = batch.responses[row : row + 1], (1 - ratio) / 5
                else:
                    target = teacher.read(taught[one], signals[1][one], signals[2][one], session=session)
                    weight = ratio / 5
                loss = loss + weight * functional.poisson_nll_loss(
                    rates, target.detach(), log_input=False, eps=1e-8, reduction="sum"
                )
            clip += 1
    loss.backward()
    assert_same(gradients(encoder), gradients(plain))


def test_parts_hold_every_clip_once_and_no_more_than_fit(step):
    _, _, batches = step
    for size in range(1, 7):
        parts = cut_parts(batches, size)
        assert [sum(len(piece) for piece in part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert 1 <= sum(len(piece) for piece in parts[-1]) <= size
        starts = [
            (piece.session, *pair)
            for part in parts
            for piece in part
            for pair in zip(piece.trial.tolist(), piece.start.tolist(), strict=True)
        ]
        expected = [
            (batch.session, *pair)
            for batch in batches
            for pair in zip(batch.trial.tolist(), batch.start.tolist(), strict=True)
        ]
        assert starts == expected


def test_both_published_stages_run_one_after_the_other(recordings, tmp_path):
    teacher = run(SPEC, recordings, tmp_path / "teacher")
    assert teacher.outcome is Outcome.FINISHED, teacher.error
    student = replace(
        SPEC,
        model=replace(DWISENEURO, expansion=1),
        distillation=DistillationConfig(teacher=str(teacher.checkpoint)),
    )
    result = run(student, recordings, tmp_path / "student")
    assert result.outcome is Outcome.FINISHED, result.error


@pytest.mark.parametrize(("spec", "at_once", "said"), [(SPEC, 2, True), (SPEC, 5, False), (None, 2, False)])
def test_a_run_whose_batch_norm_sees_less_than_the_batch_says_so(recordings, caplog, spec, at_once, said):
    material = Material.prepare(recordings, spec or tiny_spec(), device=CPU)
    warn_of_batch_norm(material.build_encoder(), at_once=at_once, batch_size=5)
    assert ("batch norm sees 2 clips at a time, not the batch of 5" in caplog.text) == said
