"""Attention with a bias that is learned and shared by many windows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 8 * 2**20
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
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        attended = torch.empty_like(query)
        for part in _chunks(query, bias):
            weights = _weights(query[part], key[part], bias)
            attended[part] = torch.bmm(weights, value[part].flatten(0, 1)).unflatten(0, query[part].shape[:2])
        ctx.save_for_backward(query, key, value, bias, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value, bias, attended = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        grad_bias = torch.zeros_like(bias)
        scale = query.shape[-1] ** -0.5
        for part in _chunks(query, bias):
            q, k, v, g = (x[part].flatten(0, 1) for x in (query, key, value, grad))
            windows_heads = query[part].shape[:2]
            weights = _weights(query[part], key[part], bias)
            # The softmax subtracts sum(weights * grad_weights) from its gradient, which is grad . attended.
            total = (grad[part] * attended[part]).sum(-1, keepdim=True).flatten(0, 1)
            grad_scores = torch.bmm(g, v.transpose(1, 2)).sub_(total).mul_(weights)
            grad_value[part] = torch.bmm(weights.transpose(1, 2), g).unflatten(0, windows_heads)
            grad_query[part] = torch.bmm(grad_scores, k).mul_(scale).unflatten(0, windows_heads)
            grad_key[part] = torch.bmm(grad_scores.transpose(1, 2), q).mul_(scale).unflatten(0, windows_heads)
            grad_bias += grad_scores.unflatten(0, windows_heads).sum(0)
        return grad_query, grad_key, grad_value, grad_bias


def _chunks(query: Tensor, bias: Tensor) -> list[slice]:
    size = max(1, CHUNK_BYTES // (bias.numel() * query.element_size()))
    return [slice(start, start + size) for start in range(0, query.shape[0], size)]


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    offsets = bias.expand(query.shape[0], *bias.shape).flatten(0, 1)
    scores = torch.baddbmm(
        offsets, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=query.shape[-1] ** -0.5
    )
    return scores.softmax(-1)
