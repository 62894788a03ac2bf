"""Output nonlinearities: from any number to a rate that cannot be negative."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class EluPlusOne(nn.Module):
    """``elu(x) + 1``: the baselines' and V1FM's output; linear above zero, exponential below."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Map to rates."""
        return functional.elu(x) + 1


class Exponential(nn.Module):
    """``exp(x)``: ViV1T's output."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Map to rates."""
        return torch.exp(x)


class Softplus(nn.Module):
    """``log(1 + exp(beta x)) / beta``: DwiseNeuro's output, there with ``beta=0.07``.

    Args:
        beta: sharpness of the bend at zero; the output at zero is ``log(2) / beta``.
        threshold: ``beta x`` above which the line itself is returned.
    """

    def __init__(self, beta: float = 1.0, *, threshold: float = 20.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta is {beta}, but must be positive")
        self.beta = beta
        self.threshold = threshold

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Map to rates."""
        return functional.softplus(x, beta=self.beta, threshold=self.threshold)

    def extra_repr(self) -> str:
        """Show the settings where the module is printed."""
        return f"beta={self.beta}, threshold={self.threshold}"


class LearnableSoftplus(nn.Module):
    """A softplus whose sharpness is trained; its logarithm is the parameter, so it stays positive.

    Args:
        beta: sharpness at the start.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta is {beta}, but must be positive")
        self.log_beta = nn.Parameter(torch.tensor(beta).log())

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Map to rates."""
        beta = self.log_beta.exp()
        return functional.softplus(x * beta) / beta


OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    "elu_plus_one": EluPlusOne,
    "exponential": Exponential,
    "softplus": Softplus,
    "learnable_softplus": LearnableSoftplus,
}
"""Output nonlinearities by name, with their default sharpness."""
