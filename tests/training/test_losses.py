import math

import numpy as np
import pytest
import torch
from torch import nn

from training.losses import (
    DWISENEURO_LOSS,
    V1FM_LOSS,
    VIVIT_LOSS,
    BatchMoments,
    LossConfig,
    clip_loss,
    loss_scale,
    poisson_loss,
)

EPS32 = 2**-23


def make_clips(seed=0, shape=(6, 5, 7), *, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    responses = torch.rand(shape, generator=generator).pow(3)
    predicted = (responses + torch.rand(shape, generator=generator)).requires_grad_(requires_grad)
    return predicted, responses


@pytest.mark.parametrize("config", [LossConfig(), DWISENEURO_LOSS])
def test_poisson_loss_is_torchs_for_baselines_and_dwiseneuro(config):
    predicted, responses = make_clips()
    reference = nn.PoissonNLLLoss(log_input=False, full=False, eps=1e-8, reduction="none")
    expected = reference(predicted, responses).sum(dim=(1, 2))
    torch.testing.assert_close(poisson_loss(predicted, responses, config), expected)


@pytest.mark.parametrize(("config", "eps"), [(V1FM_LOSS, 1e-8), (VIVIT_LOSS, EPS32)])
def test_poisson_loss_of_v1fm_and_vivit_adds_eps_everywhere(config, eps):
    predicted, responses = make_clips()
    predicted[0, 0, 0] = 0
    p, r = predicted.double().numpy() + eps, responses.double().numpy() + eps
    expected = (p - r * np.log(p)).sum(axis=(1, 2))
    np.testing.assert_allclose(poisson_loss(predicted, responses, config), expected, rtol=1e-5)


def test_half_precision_predictions_of_0_give_a_finite_loss():
    predicted, responses = torch.zeros(1, 2, 3, dtype=torch.float16), torch.ones(1, 2, 3)
    loss = poisson_loss(predicted, responses, LossConfig())
    assert loss.item() == pytest.approx(-6 * math.log(1e-8))


@pytest.mark.parametrize(
    ("scale", "expected"), [("sqrt_dataset", math.sqrt(700 / 8)), ("none", 1), ("mean_over_clips", 1 / 40)]
)
def test_scales_follow_their_rule(scale, expected):
    config = LossConfig(scale=scale)
    assert loss_scale(config, num_trials=700, session_clips=8, step_clips=40) == pytest.approx(expected)


def test_batches_of_no_clips_have_no_scale():
    with pytest.raises(ValueError, match="session_clips is 0, but must be at least 1"):
        loss_scale(LossConfig(), num_trials=700, session_clips=0, step_clips=40)


def test_vivits_term_is_1000_times_one_minus_the_correlation_over_clips_and_frames():
    predicted, responses = make_clips()
    term = clip_loss(predicted, responses, VIVIT_LOSS, scale=1.0)
    poisson = poisson_loss(predicted, responses, VIVIT_LOSS).sum()
    correlations = [
        np.corrcoef(predicted[:, n].flatten().double(), responses[:, n].flatten().double())[0, 1]
        for n in range(5)
    ]
    assert (term - poisson).item() == pytest.approx(1000 * (1 - np.array(correlations)).sum(), rel=1e-5)


@pytest.mark.parametrize("parts", [(6,), (3, 3), (1, 5), (1, 2, 3), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("config", [VIVIT_LOSS, LossConfig()])
def test_micro_batches_add_up_to_the_batch_in_value_and_gradient(config, parts):
    predicted, responses = make_clips(requires_grad=True)
    whole = clip_loss(predicted, responses, config, scale=0.7)
    (expected,) = torch.autograd.grad(whole, predicted)
    micro = list(zip(predicted.detach().split(parts), responses.split(parts), strict=True))
    moments = [BatchMoments.of(p, r) for p, r in micro]
    total, gradients = 0.0, []
    for index, (p, r) in enumerate(micro):
        p.requires_grad_()
        others = moments[:index] + moments[index + 1 :]
        loss = clip_loss(p, r, config, scale=0.7, others=others)
        total += loss.item()
        gradients.extend(torch.autograd.grad(loss, p))
    assert total == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=1e-4, atol=1e-4)


def test_without_the_other_micro_batches_the_gradient_would_differ():
    predicted, responses = make_clips(requires_grad=True)
    (whole,) = torch.autograd.grad(clip_loss(predicted, responses, VIVIT_LOSS, scale=1.0), predicted)
    part = predicted[:3].detach().requires_grad_()
    (alone,) = torch.autograd.grad(clip_loss(part, responses[:3], VIVIT_LOSS, scale=1.0), part)
    assert (alone - whole[:3]).abs().max() > 1


def test_the_gradient_of_the_correlation_agrees_with_finite_differences():
    predicted, responses = make_clips(shape=(2, 2, 4))
    others = [BatchMoments.of(*make_clips(1, shape=(3, 2, 4)))]

    def term(p):
        return BatchMoments.of(p, responses).merge(others[0]).correlation(1e-7).sum()

    leaf = predicted.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term(leaf), leaf)
    for index in [(0, 0, 0), (1, 1, 3)]:
        step = torch.zeros_like(predicted)
        step[index] = 1e-2
        difference = (term(predicted + step) - term(predicted - step)) / 2e-2
        assert gradient[index].item() == pytest.approx(difference.item(), abs=2e-3)


def test_a_neuron_that_never_changes_gives_no_nan():
    predicted, responses = make_clips()
    predicted, responses = predicted.clone(), responses.clone()
    predicted[:, 0] = 0.5
    responses[:, 1] = 0
    predicted.requires_grad_()
    loss = clip_loss(predicted, responses, VIVIT_LOSS, scale=1.0)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_moments_survive_the_way_to_another_process():
    moments = BatchMoments.of(*make_clips())
    again = BatchMoments.unpack(moments.pack())
    assert again.count == moments.count == 42
    torch.testing.assert_close(again.correlation(1e-8), moments.correlation(1e-8), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [{"eps": 0.0}, {"eps": 1.0}, {"correlation_weight": -1.0}])
def test_impossible_losses_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is .*, but must be"):
        LossConfig(**bad)
