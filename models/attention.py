"""Attention with a bias that is learned and shared by many windows."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.alike import alike

CHUNK_BYTES = 4 * 2**20
"""Attention weights worked on at a time on the CPU, so that they stay in its cache (2-10 MB are alike)."""


def biased_attention(
    query: Float[Tensor, "windows heads l d"],
    key: Float[Tensor, "windows heads m d"],
    value: Float[Tensor, "windows heads m d"],
    *,
    bias: Float[Tensor, "heads l m"],
) -> Float[Tensor, "windows heads l d"]:
    """Return softmax(query key^T / sqrt(d) + bias) value.

    Where the bias needs a gradient, torch's CPU kernel falls back to storing all attention weights; a chunked
    version that recomputes them in the backward pass is 1.7 times faster there and stores none.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        bias = bias.to(query.dtype)
        result: Tensor = _ChunkedAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
        return result
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype)[None])


class _ChunkedAttention(torch.autograd.Function):
    """Attention over a few windows at a time; the weights are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        attended = torch.empty(query.shape, dtype=query.dtype)
        for part in _chunks(query, bias):
            torch.bmm(
                _weights(query[part], key[part], bias),
                value[part].flatten(0, 1),
                out=attended[part].flatten(0, 1),
            )
        ctx.save_for_backward(query, key, value, bias)
        return attended

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value, bias = ctx.saved_tensors
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        # Sums over windows, in which half precision would lose digits.
        grad_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32))
        for part in _chunks(query, bias):
            weights = _weights(query[part], key[part], bias)
            inputs = [x[part].flatten(0, 1) for x in (query, key, value, grad_outputs[0])]
            grad_scores = _put_gradients(weights, *inputs, out=[x[part].flatten(0, 1) for x in grads])
            grad_bias += grad_scores.unflatten(0, (-1, len(bias))).sum(0)
            del weights, grad_scores
        scale = query.shape[-1] ** -0.5
        return grads[0].mul_(scale), grads[1].mul_(scale), grads[2], grad_bias.to(bias.dtype)


def _put_gradients(
    weights: Tensor, query: Tensor, key: Tensor, value: Tensor, grad: Tensor, *, out: list[Tensor]
) -> Tensor:
    """Write the gradients of queries (but for their scale), keys and values; return that of the scores."""
    torch.bmm(weights.mT, grad, out=out[2])
    grad_scores: Tensor = torch.ops.aten._softmax_backward_data(
        torch.bmm(grad, value.mT), weights, -1, weights.dtype
    )
    torch.bmm(grad_scores, key, out=out[0])
    torch.bmm(grad_scores.mT, query, out=out[1])
    return grad_scores


def _chunks(query: Tensor, bias: Tensor) -> Iterable[slice]:
    windows = len(query)
    size = min(max(1, CHUNK_BYTES // (bias.numel() * query.element_size())), windows)
    return alike([slice(start, start + size) for start in range(0, windows, size)], times=windows / size)


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Return the softmax over keys, windows and heads in one axis."""
    q, k = query.flatten(0, 1), key.flatten(0, 1)
    # With beta=0 the first argument is never read: a product and its scale in one go.
    scores = torch.baddbmm(q.new_empty(1), q, k.mT, beta=0, alpha=query.shape[-1] ** -0.5)
    scores.unflatten(0, query.shape[:2]).add_(bias)
    return scores.softmax(-1)
