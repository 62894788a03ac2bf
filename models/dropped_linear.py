"""A linear layer with dropout on its input."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional


class DroppedLinear(nn.Linear):
    """Drop random features of the input in training, then multiply and add as ``nn.Linear`` does.

    On a CPU torch's dropout takes 20 ns a feature, more than the multiplication, and keeps the mask and the
    dropped input for the gradients. This one draws 16 random bits a feature (the rate is rounded to 1/65536,
    and the features that stay are scaled by exactly that), keeps the state of the generator, and drops the
    input again for the gradients. Elsewhere torch's own is used.

    Args:
        rate: probability that a feature is dropped.
    """

    def __init__(self, in_features: int, out_features: int, *, rate: float, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.rate = rate

    def forward(
        self,
        input: Float[Tensor, "*rows d_in"],  # noqa: A002 - as in torch
        activation: nn.Module | None = None,
    ) -> Float[Tensor, "*rows d_out"]:
        """Drop, multiply and add.

        Args:
            input: features, from which ``activation`` makes those to drop.
            activation: pure function of the input; in training it is computed again for the gradients.
        """
        is_dropping = self.training and self.rate > 0
        if is_dropping and input.device.type == "cpu" and not torch.compiler.is_compiling():
            product: Tensor = _DroppedProduct.apply(input, self.weight, self.rate, activation)
            return product if self.bias is None else product + self.bias
        features = input if activation is None else activation(input)
        return super().forward(functional.dropout(features, self.rate) if is_dropping else features)

    def extra_repr(self) -> str:
        """Show the rate where the module is printed."""
        return f"{super().extra_repr()}, rate={self.rate}"


class _DroppedProduct(torch.autograd.Function):
    """Activation, dropout and matrix product; the scale of what stays is put into the (smaller) weights."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "*rows d_in"],
        weight: Float[Tensor, "d_out d"],
        rate: float,
        activation: nn.Module | None,
    ) -> Float[Tensor, "*rows d_out"]:
        """Return the product of weights and dropped features."""
        ctx.save_for_backward(hidden, weight)
        ctx.rate, ctx.activation = rate, activation
        ctx.generator = torch.default_generator.clone_state()
        features = hidden if activation is None else activation(hidden)
        mask, scale = draw_mask(features.shape, rate)
        return functional.linear(_masked(features, mask), weight * scale)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of hidden features and weights."""
        hidden, weight = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)
        leaf = hidden.detach().requires_grad_(ctx.activation is not None)
        with torch.enable_grad():
            features = leaf if ctx.activation is None else ctx.activation(leaf)
        # A copy, so that a second backward pass sees the same mask.
        mask, scale = draw_mask(features.shape, ctx.rate, generator=ctx.generator.clone_state())
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            dropped = _masked(features.detach(), mask).flatten(0, -2)
            of_weight = torch.matmul(grad.T, dropped).mul_(scale).to(weight.dtype)
            del dropped
        if ctx.needs_input_grad[0]:
            # Two axes: for a gradient that is not contiguous a product with three makes many small ones.
            of_hidden = torch.matmul(grad, weight * scale).view(mask.shape).mul_(mask).to(features.dtype)
            if ctx.activation is not None:
                (of_hidden,) = torch.autograd.grad(features, leaf, of_hidden)
        return of_hidden, of_weight, None, None


def _masked(features: Float[Tensor, "*rows d"], mask: UInt8[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    # A product of two types would make a copy of the mask in the wider one, and then the result.
    return mask.to(features.dtype).mul_(features)


def draw_mask(
    shape: torch.Size, rate: float, *, generator: torch.Generator | None = None
) -> tuple[UInt8[Tensor, "*shape"], float]:
    """Draw which features stay.

    Args:
        shape: shape of the features.
        rate: probability that a feature is dropped, less than 1.
        generator: where the random bits come from; torch's default one if None.

    Returns:
        1 for each feature that stays, and the factor that keeps the mean.
    """
    num_values = 2**16
    num_kept = max(round((1 - rate) * num_values), 1)
    num_features = math.prod(shape)
    bits = torch.empty((num_features + 3) // 4, dtype=torch.int64).random_(
        -(2**63), None, generator=generator
    )
    values = bits.view(torch.int16)[:num_features].view(shape)
    return (values < num_kept - num_values // 2).view(torch.uint8), num_values / num_kept
