"""Convolutions that are rotation-equivariant by construction: kernels made of Hermite functions."""

import math

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

_SAMPLES_PER_PIXEL = 2


def hermite_basis(size: int) -> tuple[Float[Tensor, "k y x"], Float[Tensor, " k"]]:
    """Return the two-dimensional Hermite functions below rank ``size`` in polar form, and their orders.

    The functions of rank r have the angular orders r, r - 2, ... down to 0 or 1: one function for order
    0, and a pair (cosine, sine) for every other. They are sampled twice as finely as the kernels made
    of them, on ``2 size`` points per axis, and scaled to unit norm there.

    Args:
        size: rows and columns of the kernels; there are ``size (size + 1) / 2`` functions.

    Returns:
        The functions, and for each its angular order, negative for the sine of a pair.

    Source:
        Victor and Knight 2003, "Simultaneously band and space limited functions in two dimensions";
        Ecker et al. 2019, "A rotation-equivariant convolutional neural network model of primary visual
        cortex", section 3.1; extent of the grid from the Sensorium 2023 starter kit.
    """
    extent = 2 * math.sqrt(size) * (1 - 1 / (_SAMPLES_PER_PIXEL * size))
    axis = torch.linspace(-extent, extent, _SAMPLES_PER_PIXEL * size, dtype=torch.float64)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    angle, squared_radius = torch.atan2(row, column), row**2 + column**2
    functions, orders = [], []
    for rank in range(size):
        for order in range(rank % 2, rank + 1, 2):
            radial = _radial(squared_radius, order, (rank - order) // 2)
            functions += [radial * torch.cos(order * angle), radial * torch.sin(order * angle)][
                : 1 + (order > 0)
            ]
            orders += [order, -order][: 1 + (order > 0)]
    basis = torch.stack(functions)
    return basis / basis.square().sum(dim=(1, 2), keepdim=True).sqrt(), torch.tensor(orders).double()


def _radial(squared_radius: Float[Tensor, "y x"], order: int, degree: int) -> Float[Tensor, "y x"]:
    """Return a Gaussian times a power of the radius times a Laguerre polynomial."""
    polynomial = torch.zeros_like(squared_radius)
    for k in range(degree + 1):
        coefficient = math.factorial(order + degree) * math.factorial(degree) * (-2.0) ** (degree - k)
        coefficient /= math.factorial(order + k) * math.factorial(k) * math.factorial(degree - k)
        polynomial += coefficient * squared_radius**k
    return torch.exp(-squared_radius / 4) * squared_radius ** (order / 2) * polynomial


def rotated_bases(size: int, num_rotations: int) -> Float[Tensor, "rotation k y x"]:
    """Return the basis of kernels at each rotation, one kernel pixel per entry.

    A rotation by an angle turns the pair of order m by m times the angle and leaves order 0 alone.

    Args:
        size: rows and columns of the kernels.
        num_rotations: evenly spaced angles, the first of which is 0.
    """
    basis, orders = hermite_basis(size)
    # The partner of a cosine is the sine behind it, that of a sine the cosine before it.
    partner = basis[torch.arange(len(orders)) + torch.sign(orders).long()]
    angles = 2 * math.pi * torch.arange(num_rotations).double() / num_rotations
    turn = rearrange(angles, "rotation -> rotation 1 1 1") * rearrange(orders, "k -> k 1 1")
    fine = torch.cos(turn) * basis - torch.sin(turn) * partner
    pixels = "rotation k (y fy) (x fx) -> rotation k y x"
    return reduce(fine, pixels, "sum", fy=_SAMPLES_PER_PIXEL, fx=_SAMPLES_PER_PIXEL).float()


class HermiteKernels(nn.Module):
    """Kernels of one layer at every rotation, from coefficients of the Hermite basis.

    Output channels are ordered rotation first: channel = rotation * features + feature.

    Args:
        in_channels: channels of the layer's input.
        features: kernels before they are rotated.
        size: rows and columns of the kernels.
        num_rotations: angles of every kernel.
        rotating_input: whether the input's channels, too, are ordered by rotation; a rotated kernel then
            reads its input channels from rotated places.
        init_std: standard deviation of the coefficients at the start.
    """

    bases: Tensor

    def __init__(
        self,
        in_channels: int,
        features: int,
        *,
        size: int,
        num_rotations: int,
        rotating_input: bool,
        init_std: float,
    ) -> None:
        super().__init__()
        bases = rotated_bases(size, num_rotations)
        self.register_buffer("bases", bases, persistent=False)
        self.coefficients = nn.Parameter(torch.randn(bases.shape[1], in_channels, features) * init_std)
        self.channels_per_rotation = in_channels // num_rotations if rotating_input else 0

    def forward(self) -> Float[Tensor, "rotation_feature c y x"]:
        """Build the kernels; a few milliseconds, so nobody keeps them while they are trained."""
        # Kernels in half precision would lose the equivariance and save nothing.
        with torch.autocast(self.bases.device.type, enabled=False):
            kernels = einsum(self.bases, self.coefficients, "rotation k y x, k c d -> rotation d c y x")
        rotated = [
            of_rotation.roll(index * self.channels_per_rotation, dims=1)
            for index, of_rotation in enumerate(kernels.unbind())
        ]
        return torch.cat(rotated)
