import pytest
import torch
from torch import nn

from models.normed_products import normed_products


def layers(dtype):
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, eps=1e-3).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, torch.randn(9, 6, dtype=dtype, requires_grad=True)


def by_formula(features, norm, weight):
    centered = features - features.mean(-1, keepdim=True)
    normalized = centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + norm.eps)
    return (normalized * norm.weight + norm.bias) @ weight.T


def test_results_and_gradients_are_those_of_the_formula():
    norm, weight = layers(torch.float64)
    features = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    result = torch.cat(normed_products(features, norm, weight, [2, 3, 4]), dim=-1)
    expected = by_formula(features, norm, weight)
    torch.testing.assert_close(result, expected)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(normed_products(features, norm, weight, [9]), dim=-1), expected)
    inputs, cotangent = [features, weight, *norm.parameters()], torch.randn_like(result)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent)
    )


def test_a_part_that_is_not_used_gets_no_gradient():
    norm, weight = layers(torch.float64)
    features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    used, _ = normed_products(features, norm, weight, [2, 7])
    inputs = [features, weight]
    found = torch.autograd.grad(used.sum(), inputs)
    expected = torch.autograd.grad(by_formula(features, norm, weight)[:, :2].sum(), inputs)
    torch.testing.assert_close(found, expected)


def test_autocast_multiplies_in_half_precision_and_gives_full_precision_gradients():
    norm, weight = layers(torch.float32)
    features = torch.randn(50, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = normed_products(features, norm, weight, [9])
    full = by_formula(features, norm, weight)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.05)
    inputs = [features, weight, *norm.parameters()]
    for found, expected in zip(
        torch.autograd.grad(half.float().square().sum(), inputs),
        torch.autograd.grad(full.square().sum(), inputs),
        strict=True,
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("gradients", [True, False])
def test_only_the_features_are_kept(gradients):
    norm, weight = layers(torch.float32)
    features = torch.randn(500, 6, requires_grad=True)
    kept = []
    with (
        torch.set_grad_enabled(gradients),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        normed_products(features, norm, weight, [3, 3, 3])
    of_rows = [t for t in kept if len(t) == 500 and t.shape[-1] > 1]
    assert all(t is features for t in of_rows)
    assert len(of_rows) == gradients
