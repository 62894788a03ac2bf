"""How rough convolution kernels are: the penalties of the baselines."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def spatial_roughness(kernels: Float[Tensor, "*k h w"]) -> Float[Tensor, ""]:
    """Return the energy of the kernels' Laplacian relative to the energy of the kernels.

    Source:
        Sensorium 2023 starter kit: kernels are convolved with [0 -1 0; -1 4 -1; 0 -1 0], zero padded.
    """
    padded = functional.pad(kernels, (1, 1, 1, 1))
    beside = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    above_and_below = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    return (4 * kernels - beside - above_and_below).square().sum() / kernels.square().sum()


def temporal_roughness(kernels: Float[Tensor, "*k t"]) -> Float[Tensor, ""]:
    """Return the energy of the kernels' filtered time courses relative to the energy of the kernels.

    Source:
        Sensorium 2023 starter kit: [-1 4 -1], zero padded. The filter sums to 2, so unlike a Laplacian
        it also penalizes constant kernels; kept, because the published models were trained with it.
    """
    padded = functional.pad(kernels, (1, 1))
    filtered = 4 * kernels - padded[..., :-2] - padded[..., 2:]
    return filtered.square().sum() / kernels.square().sum()
