import math

import pytest
import torch

from models.dropped_linear import DroppedLinear, draw_mask
from models.transformer import SwiGLU


def test_features_stay_with_the_asked_probability_and_keep_their_mean():
    torch.manual_seed(0)
    for rate in (0.0001, 0.0592, 0.358, 0.9):
        mask, scale = draw_mask(torch.Size((501, 1001)), rate)
        deviation = math.sqrt(rate * (1 - rate) / mask.numel())
        assert mask.float().mean().item() == pytest.approx(1 - rate, abs=4 * deviation + 1 / 2**17)
        assert scale == pytest.approx(1 / (1 - rate), rel=1e-4)
        assert set(mask.unique().tolist()) == {0, 1}


def test_neighboring_features_are_dropped_independently():
    torch.manual_seed(0)
    mask = draw_mask(torch.Size((400_000,)), 0.5)[0].double() - 0.5
    for lag in range(1, 9):
        assert abs((mask[lag:] * mask[:-lag]).mean().item() * 4) < 4 / math.sqrt(400_000)


@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradients_are_those_of_a_linear_layer_on_dropped_features(bias):
    torch.manual_seed(0)
    layer = DroppedLinear(7, 4, rate=0.3, bias=bias).double()
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    result = layer(x)
    torch.manual_seed(1)
    mask, scale = draw_mask(x.shape, 0.3)
    expected = torch.nn.functional.linear(x * mask * scale, layer.weight, layer.bias)
    torch.testing.assert_close(result, expected)
    assert not mask.all()
    cotangent = torch.randn(3, 5, 4, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent)
    )


def test_an_activation_is_computed_again_for_the_gradients_with_the_same_features_dropped():
    torch.manual_seed(0)
    layer = DroppedLinear(7, 4, rate=0.3, bias=False).double()
    x = torch.randn(3, 5, 14, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    result = layer(x, SwiGLU())
    torch.manual_seed(1)
    mask, scale = draw_mask(torch.Size((3, 5, 7)), 0.3)
    features = x[..., :7] * x[..., 7:] / (1 + torch.exp(-x[..., 7:]))
    expected = (features * mask * scale) @ layer.weight.T
    torch.testing.assert_close(result, expected)
    # A gradient that is not contiguous, as the readout's is, and asked for twice.
    cotangent = torch.randn(4, 5, 3, dtype=torch.float64).permute(2, 1, 0)
    inputs = [x, layer.weight]
    wanted = torch.autograd.grad(expected, inputs, cotangent)
    before = torch.get_rng_state()
    for _ in range(2):
        found = torch.autograd.grad(result, inputs, cotangent, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_neither_mask_nor_activation_is_kept():
    layer = DroppedLinear(256, 8, rate=0.3)
    x = torch.randn(1000, 256, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x, torch.nn.GELU())
    assert {tuple(t.shape) for t in kept} == {(1000, 256), (8, 256)}
    assert all(t is x or t is layer.weight for t in kept)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    layer, x = DroppedLinear(7, 4, rate=0.3).eval(), torch.randn(3, 7)
    expected = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    layer.train().rate = 0
    torch.testing.assert_close(layer(x), expected)


def test_autocast_multiplies_in_half_precision_and_gives_full_precision_gradients():
    torch.manual_seed(0)
    layer = DroppedLinear(64, 8, rate=0.3, bias=False)
    x = torch.randn(50, 64, requires_grad=True)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    torch.manual_seed(1)
    full = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.02)
    for h, f in zip(
        torch.autograd.grad(half.float().sum(), [x, layer.weight]),
        torch.autograd.grad(full.sum(), [x, layer.weight]),
        strict=True,
    ):
        assert h.dtype == torch.float32
        torch.testing.assert_close(h, f, rtol=0.02, atol=0.1)
