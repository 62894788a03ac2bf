import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.cores.hermite import HermiteKernels, hermite_basis, rotated_bases


@pytest.mark.parametrize("size", [3, 7, 9])
def test_there_are_as_many_functions_as_the_ranks_have(size):
    basis, orders = hermite_basis(size)
    assert basis.shape == (size * (size + 1) // 2, 2 * size, 2 * size)
    assert len(orders) == len(basis)


@pytest.mark.parametrize("size", [5, 7, 9])
def test_every_function_of_a_rank_is_a_sum_of_products_of_that_rank(size):
    basis, _ = hermite_basis(size)
    extent = 2 * math.sqrt(size) * (1 - 1 / (2 * size))
    axis = np.linspace(-extent, extent, 2 * size)
    one_dimensional = [
        np.polynomial.hermite_e.hermeval(axis, [0] * degree + [1]) * np.exp(-(axis**2) / 4)
        for degree in range(size)
    ]
    functions = iter(basis.numpy())
    for rank in range(size):
        products = np.stack(
            [np.outer(one_dimensional[i], one_dimensional[rank - i]).ravel() for i in range(rank + 1)],
            axis=1,
        )
        for _ in range(rank + 1):
            function = next(functions).ravel()
            fitted = products @ np.linalg.lstsq(products, function, rcond=None)[0]
            np.testing.assert_allclose(fitted, function, rtol=0, atol=1e-10)


def test_basis_is_orthonormal_as_far_as_its_grid_reaches():
    basis, _ = hermite_basis(9)
    low = basis[:21].flatten(1)
    # Ranks 0 to 5 end well inside of the grid, where a sum over it is an integral over the plane.
    torch.testing.assert_close(low @ low.T, torch.eye(21).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(basis.flatten(1).norm(dim=1), torch.ones(45).double())


def test_first_functions_are_a_gaussian_and_its_first_moments():
    basis, orders = hermite_basis(5)
    extent = 2 * math.sqrt(5) * 0.9
    axis = torch.linspace(-extent, extent, 10).double()
    gaussian = torch.exp(-(axis[:, None] ** 2 + axis**2) / 4)
    for function, expected in zip(basis, (gaussian, gaussian * axis, gaussian * axis[:, None]), strict=False):
        torch.testing.assert_close(function, expected / expected.norm())
    assert orders[:6].tolist() == [0, 1, -1, 0, 2, -2]


def test_pixels_of_the_kernels_are_sums_of_four_samples():
    basis, _ = hermite_basis(4)
    expected = sum(basis[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    torch.testing.assert_close(rotated_bases(4, 8)[0], expected.float())


def test_rotation_by_two_eighths_turns_the_kernel_by_a_quarter():
    bases = rotated_bases(6, 8)
    for quarter in range(4):
        # Angles grow from columns to rows, which is what turning the array against them undoes.
        torch.testing.assert_close(
            bases[2 * quarter], torch.rot90(bases[0], quarter, (1, 2)), rtol=0, atol=1e-6
        )


def make_kernels(*, rotating_input):
    torch.manual_seed(3)
    channels = 16 if rotating_input else 3
    return HermiteKernels(channels, 2, size=5, num_rotations=8, rotating_input=rotating_input, init_std=0.1)()


def test_two_layers_turn_their_output_when_the_frame_turns():
    first, second = make_kernels(rotating_input=False), make_kernels(rotating_input=True)

    def layers(frame):
        return functional.conv2d(functional.elu(functional.conv2d(frame, first)), second, padding=2)

    frame = torch.randn(1, 3, 11, 11)
    turned = layers(torch.rot90(frame, 1, (2, 3)))
    # A quarter is two of eight rotations: maps turn, and move on by two blocks of two channels.
    expected = torch.rot90(layers(frame), 1, (2, 3)).roll(4, dims=1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)


def test_kernels_are_the_coefficients_sum_over_the_rotated_basis():
    torch.manual_seed(4)
    kernels = HermiteKernels(8, 1, size=3, num_rotations=4, rotating_input=True, init_std=1.0)
    built, coefficients, bases = kernels(), kernels.coefficients.detach(), rotated_bases(3, 4)
    for rotation in range(4):
        for channel in range(8):
            expected = sum(bases[rotation, k] * coefficients[k, channel, 0] for k in range(6))
            torch.testing.assert_close(built[rotation, (channel + 2 * rotation) % 8], expected)
