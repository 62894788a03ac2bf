"""Attention on products of normalized features, a few rows at a time, that keeps none of the products."""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.alike import alike

CHUNK_BYTES = 16 * 2**20
"""Queries, keys and values worked on at a time on the CPU (4 to 64 MB are alike)."""


def normed_attention(
    features: Float[Tensor, "row s d"],
    norm: nn.LayerNorm,
    weight: Float[Tensor, "e d"],
    *,
    width: int,
    num_heads: int,
) -> tuple[Float[Tensor, "row s _"], Float[Tensor, "row s _"]]:
    """Return softmax attention within each row, and what is left of the product with the weights.

    ``norm(features)`` times ``weight`` gives queries, keys and values of ``width`` features each, and the
    rest. Only the features, what attention returns and its normalization are kept for the gradients:
    queries, keys and values, twice as much as all else that a published ViV1T block keeps, are made again,
    for a tenth of a training step's multiplications. For the CPU; not differentiable twice.

    Args:
        features: tokens of rows that do not see each other.
        norm: normalization of the tokens.
        weight: rows for queries, keys and values, each head by head, and then for the rest, if any.
        width: features of all heads together.
        num_heads: attention heads.
    """
    attended, rest = _NormedAttention.apply(
        features, norm.weight, norm.bias, weight, norm.eps, width, num_heads
    )
    return attended, rest


class _NormedAttention(torch.autograd.Function):
    """Keeps features, mean and deviation of every token, and attention's result with its log-sum-exp."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        features: Tensor,
        gain: Tensor,
        offset: Tensor,
        weight: Tensor,
        eps: float,
        width: int,
        num_heads: int,
    ) -> tuple[Tensor, Tensor]:
        """Attend and multiply."""
        ctx.width, ctx.num_heads = width, num_heads
        num_rows, num_tokens, dim = features.shape
        dtype = _product_type(features)
        attended = features.new_empty(num_rows, num_tokens, width, dtype=dtype)
        rest = features.new_empty(num_rows, num_tokens, len(weight) - 3 * width, dtype=dtype)
        log_sums = torch.empty(
            num_rows, num_tokens, num_heads, dtype=torch.promote_types(dtype, torch.float32)
        )
        mean, deviation = (features.new_empty(num_rows, num_tokens, 1) for _ in range(2))
        for part in _chunks(features, width):
            normalized, mean[part], deviation[part] = torch.native_layer_norm(
                features[part], (dim,), gain, offset, eps
            )
            result, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_heads(normalized.to(dtype), weight, width=width, num_heads=num_heads)
            )
            attended[part] = rearrange(result, "row head s d -> row s (head d)")
            log_sums[part] = rearrange(sums, "row head s -> row s head")
            rest[part] = functional.linear(normalized, weight[3 * width :])
            del normalized, result, sums
        ctx.save_for_backward(features, gain, offset, weight, mean, deviation, attended, log_sums)
        return attended, rest

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, normalization and weights."""
        features, gain, offset, weight, mean, deviation, attended, log_sums = ctx.saved_tensors
        of_features, of_weight = torch.empty_like(features), torch.zeros_like(weight)
        of_gain, of_offset = torch.zeros_like(gain), torch.zeros_like(offset)
        for part in _chunks(features, ctx.width):
            normalized = (features[part] - mean[part]).mul_(deviation[part]).mul_(gain).add_(offset)
            normalized = normalized.to(attended.dtype)
            of_products = _attention_gradients(
                grads[0][part],
                *_heads(normalized, weight, width=ctx.width, num_heads=ctx.num_heads),
                attended=attended[part],
                log_sums=log_sums[part],
            )
            of_normalized = _product_gradients(
                [*of_products, grads[1][part]], normalized, weight, width=ctx.width, out=of_weight
            )
            of_features[part], of_gain_here, of_offset_here = torch.ops.aten.native_layer_norm_backward(
                of_normalized,
                features[part],
                gain.shape,
                mean[part],
                deviation[part],
                gain,
                offset,
                [True] * 3,
            )
            of_gain += of_gain_here
            of_offset += of_offset_here
            del normalized, of_products, of_normalized, of_gain_here, of_offset_here
        return of_features, of_gain, of_offset, of_weight, None, None, None


def _heads(normalized: Tensor, weight: Tensor, *, width: int, num_heads: int) -> list[Tensor]:
    """Return queries, keys and values, heads in front of tokens."""
    return [
        rearrange(functional.linear(normalized, part), "row s (head d) -> row head s d", head=num_heads)
        for part in weight[: 3 * width].split(width)
    ]


def _attention_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *, attended: Tensor, log_sums: Tensor
) -> list[Tensor]:
    """Return the gradients of queries, keys and values, heads side by side."""
    by_head = "row s (head d) -> row head s d"
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        rearrange(grad, by_head, head=query.shape[1]),
        query,
        key,
        value,
        rearrange(attended, by_head, head=query.shape[1]),
        rearrange(log_sums, "row s head -> row head s"),
        0.0,
        False,
    )
    return [rearrange(gradient, "row head s d -> row s (head d)") for gradient in gradients]


def _product_gradients(
    of_products: list[Tensor], normalized: Tensor, weight: Tensor, *, width: int, out: Tensor
) -> Tensor:
    """Add the gradient of the weights to ``out``; return that of the normalized features."""
    flat = normalized.flatten(0, -2)
    # A sum of several products, in which half precision would lose digits.
    of_normalized = torch.zeros(normalized.shape, dtype=out.dtype)
    widths = [*[width] * 3, len(weight) - 3 * width]
    for grad, part, of_part in zip(of_products, weight.split(widths), out.split(widths), strict=True):
        rows = grad.flatten(0, -2)
        of_part += torch.matmul(rows.T, flat)
        of_normalized += torch.matmul(rows, part).view_as(of_normalized)
    return of_normalized


def _chunks(features: Tensor, width: int) -> Iterable[slice]:
    num_rows, num_tokens, _ = features.shape
    bytes_per_row = 3 * num_tokens * width * features.element_size()
    size = min(max(1, CHUNK_BYTES // bytes_per_row), num_rows)
    starts = range(0, num_rows, size)
    return alike([slice(start, start + size) for start in starts], times=num_rows / size)


def _product_type(features: Tensor) -> torch.dtype:
    """Return the type of products: that of autocast where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
