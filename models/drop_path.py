"""Stochastic depth."""

from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a whole residual branch for random rows in training, and scale up the rows that stay.

    Args:
        rate: probability that a row's branch is dropped.

    Source:
        Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, features: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Drop in training; the mean over masks is the input."""
        if not self.training or self.rate == 0:
            return features
        keep = 1 - self.rate
        mask = features.new_empty(len(features), *[1] * (features.dim() - 1)).bernoulli_(keep)
        return features * (mask / keep)

    def extra_repr(self) -> str:
        """Show the rate where the module is printed."""
        return f"rate={self.rate}"
