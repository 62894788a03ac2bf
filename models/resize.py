"""Nearest-neighbor resizing of one axis."""

import torch
from jaxtyping import Int
from torch import Tensor


def nearest(num_from: int, num_to: int) -> Int[Tensor, " to"]:
    """Return which of ``num_from`` entries each of ``num_to`` entries takes when an axis is resized.

    This is torch's nearest rule, in its float32 arithmetic: exact integers differ in a few entries
    for some numbers of neurons, and published parameters belong to these entries.
    """
    scale = torch.tensor(num_from, dtype=torch.float32) / num_to
    return (torch.arange(num_to, dtype=torch.float32) * scale).long().clamp(max=num_from - 1)
