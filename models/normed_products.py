"""Layer normalization and several matrix products of its result, which is not kept for the gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def normed_products(
    features: Float[Tensor, "*rows d"],
    norm: nn.LayerNorm,
    weight: Float[Tensor, "e d"],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "*rows _"], ...]:
    """Return ``norm(features)`` times ``weight``, cut into parts of ``widths`` rows, one result each.

    On a CPU the normalized features are made again for the gradients: a pass over a few features, where the
    products have many.
    """
    # A product for each part instead of one that is cut: putting together its gradient would copy all of it.
    if makes_again(features):
        result: tuple[Tensor, ...] = _NormedProducts.apply(
            features, norm.weight, norm.bias, weight, norm.eps, tuple(widths)
        )
        return result
    normalized = norm(features)
    return tuple(functional.linear(normalized, part) for part in weight.split(list(widths)))


def makes_again(features: Tensor) -> bool:
    """Whether what is made of the features is to be made again for the gradients: on a CPU, uncompiled."""
    return features.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _NormedProducts(torch.autograd.Function):
    """Keeps the features, and of the normalization its mean and deviation per row."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        features: Tensor,
        gain: Tensor,
        offset: Tensor,
        weight: Tensor,
        eps: float,
        widths: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        """Return one product for each width."""
        ctx.widths, ctx.half = widths, _half_precision()
        normalized, mean, deviation = torch.native_layer_norm(
            features, features.shape[-1:], gain, offset, eps
        )
        ctx.save_for_backward(features, gain, offset, weight, mean, deviation)
        normalized = normalized.to(ctx.half or normalized.dtype)
        return tuple(functional.linear(normalized, part) for part in weight.split(widths))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, normalization and weight."""
        features, gain, offset, weight, mean, deviation = ctx.saved_tensors
        normalized = (features - mean).mul_(deviation).mul_(gain).add_(offset).flatten(0, -2)
        normalized = normalized.to(ctx.half or normalized.dtype)
        # Sums of several products, in which half precision would lose digits.
        of_normalized = torch.zeros_like(features)
        of_weight = torch.empty_like(weight)
        parts = zip(grads, weight.split(ctx.widths), of_weight.split(ctx.widths), strict=True)
        for grad, part, of_part in parts:
            flat = grad.flatten(0, -2)
            of_part.copy_(torch.matmul(flat.T, normalized))
            of_normalized += torch.matmul(flat, part).view_as(features)
        of_features, of_gain, of_offset = torch.ops.aten.native_layer_norm_backward(
            of_normalized, features, features.shape[-1:], mean, deviation, gain, offset, [True] * 3
        )
        return of_features, of_gain, of_offset, of_weight, None, None


def _half_precision() -> torch.dtype | None:
    """Return the type products are made in where autocast is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
