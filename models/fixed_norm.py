"""Batch norm with fixed statistics, as what it is then: a gain and an offset per channel."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gain_and_offset(
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return what an affine norm with running statistics multiplies with and adds in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain
