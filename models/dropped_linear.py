"""A linear layer with dropout on its input."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional


class DroppedLinear(nn.Linear):
    """Drop random features of the input in training, then multiply and add as ``nn.Linear`` does.

    On a CPU torch's dropout takes 20 ns a feature, more than the multiplication, and keeps the mask in full
    precision and the dropped input for the gradients. This one draws 16 random bits a feature (the rate is
    rounded to 1/65536, and the features that stay are scaled by exactly that), keeps a byte a feature and
    drops the input again for the gradients. Elsewhere torch's own is used.

    Args:
        rate: probability that a feature is dropped.
    """

    def __init__(self, in_features: int, out_features: int, *, rate: float, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.rate = rate

    def forward(self, input: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d_out"]:  # noqa: A002 - as in torch
        """Drop, multiply and add."""
        if not self.training or self.rate == 0:
            return super().forward(input)
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(functional.dropout(input, self.rate))
        product: Tensor = _DroppedProduct.apply(input, self.weight, self.rate)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        """Show the rate where the module is printed."""
        return f"{super().extra_repr()}, rate={self.rate}"


class _DroppedProduct(torch.autograd.Function):
    """Dropout and matrix product; the scale of what stays is put into the (smaller) weights."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, features: Float[Tensor, "*rows d"], weight: Float[Tensor, "d_out d"], rate: float
    ) -> Float[Tensor, "*rows d_out"]:
        """Return the product of weights and dropped features."""
        mask, scale = draw_mask(features.shape, rate)
        ctx.save_for_backward(features, weight, mask)
        ctx.scale = scale
        return functional.linear(_masked(features, mask), weight * scale)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of features and weights."""
        features, weight, mask = ctx.saved_tensors
        grad = grad_outputs[0]
        of_features = of_weight = None
        if ctx.needs_input_grad[0]:
            of_features = torch.matmul(grad, weight * ctx.scale).mul_(mask).to(features.dtype)
        if ctx.needs_input_grad[1]:
            dropped = _masked(features, mask).flatten(0, -2)
            of_weight = torch.matmul(grad.flatten(0, -2).T, dropped).mul_(ctx.scale).to(weight.dtype)
        return of_features, of_weight, None


def _masked(features: Float[Tensor, "*rows d"], mask: UInt8[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    # A product of two types would make a copy of the mask in the wider one, and then the result.
    return mask.to(features.dtype).mul_(features)


def draw_mask(shape: torch.Size, rate: float) -> tuple[UInt8[Tensor, "*shape"], float]:
    """Draw which features stay, from torch's current generator.

    Args:
        shape: shape of the features.
        rate: probability that a feature is dropped, less than 1.

    Returns:
        1 for each feature that stays, and the factor that keeps the mean.
    """
    num_values = 2**16
    num_kept = max(round((1 - rate) * num_values), 1)
    num_features = math.prod(shape)
    bits = torch.empty((num_features + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    values = bits.view(torch.int16)[:num_features].view(shape)
    return (values < num_kept - num_values // 2).view(torch.uint8), num_values / num_kept
