import math

import pytest
import torch
from torch import nn

from models import normed_attention as module
from models.normed_attention import normed_attention

HEADS, HEAD_DIM = 3, 4
WIDTH = HEADS * HEAD_DIM


def layers(dtype, *, rest=5):
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, eps=1e-3).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, torch.randn(3 * WIDTH + rest, 6, dtype=dtype, requires_grad=True)


def by_formula(features, norm, weight):
    """Softmax attention head by head and row by row, and the rest of the products."""
    centered = features - features.mean(-1, keepdim=True)
    normalized = centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + norm.eps)
    products = (normalized * norm.weight + norm.bias) @ weight.T
    rows = []
    for row in products:
        heads = []
        for head in range(HEADS):
            query, key, value = (
                row[:, start + head * HEAD_DIM : start + (head + 1) * HEAD_DIM]
                for start in (0, WIDTH, 2 * WIDTH)
            )
            weights = torch.exp(query @ key.T / math.sqrt(HEAD_DIM))
            heads.append(weights / weights.sum(1, keepdim=True) @ value)
        rows.append(torch.cat(heads, dim=1))
    return torch.stack(rows), products[..., 3 * WIDTH :]


@pytest.mark.parametrize("rest", [0, 5])
@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
def test_results_and_gradients_are_those_of_the_formula(rows_at_a_time, rest, monkeypatch):
    norm, weight = layers(torch.float64, rest=rest)
    features = torch.randn(5, 7, 6, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(module, "CHUNK_BYTES", rows_at_a_time * 3 * 7 * WIDTH * 8)
    found = normed_attention(features, norm, weight, width=WIDTH, num_heads=HEADS)
    expected = by_formula(features, norm, weight)
    torch.testing.assert_close(found, expected)
    inputs, cotangents = [features, weight, *norm.parameters()], [torch.randn_like(x) for x in found]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, cotangents), torch.autograd.grad(expected, inputs, cotangents)
    )


def test_autocast_multiplies_in_half_precision_and_gives_full_precision_gradients():
    norm, weight = layers(torch.float32)
    features = torch.randn(4, 50, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = normed_attention(features, norm, weight / 2, width=WIDTH, num_heads=HEADS)
    full = by_formula(features, norm, weight / 2)
    inputs = [features, weight, *norm.parameters()]
    for rough, exact in zip(half, full, strict=True):
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    rough_loss, exact_loss = (sum(x.float().square().sum() for x in both) for both in (half, full))
    for found, expected in zip(
        torch.autograd.grad(rough_loss, inputs), torch.autograd.grad(exact_loss, inputs), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.03 * expected.abs().max().item())


def test_neither_queries_nor_keys_nor_values_are_kept():
    norm, weight = layers(torch.float32)
    features = torch.randn(20, 30, 6, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attended, _ = normed_attention(features, norm, weight, width=WIDTH, num_heads=HEADS)
    of_tokens = [t for t in kept if t.shape[:2] == (20, 30) and t.shape[2] > HEADS]
    assert [t.shape[2] for t in of_tokens] == [6, WIDTH]
    assert of_tokens[0] is features
    torch.testing.assert_close(of_tokens[1], attended)
