"""Convolutions with large kernels by way of the Fourier transform: the same numbers for less work.

The spectrum of every map is multiplied, frequency by frequency, with a matrix that mixes the channels;
with 9 x 9 kernels that is a twentieth of the multiplications.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from models.alike import alike

_CHUNK_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class FourierPlan:
    """How maps of one size are convolved with kernels of one size.

    Attributes:
        in_shape: rows and columns of the input.
        kernel: rows and columns of the kernels.
        padding: zeros around the input, less than ``kernel``.
    """

    in_shape: tuple[int, int]
    kernel: int
    padding: int

    @property
    def out_shape(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        lost = self.kernel - 1 - 2 * self.padding
        return (self.in_shape[0] - lost, self.in_shape[1] - lost)

    @property
    def fourier_shape(self) -> tuple[int, int]:
        """Rows and columns of what is transformed.

        The transform's convolution is cyclic, so one border of zeros serves as both.
        """
        return (self.in_shape[0] + self.padding, self.in_shape[1] + self.padding)

    @property
    def half_shape(self) -> tuple[int, int]:
        """Rows and columns of a spectrum; the other half follows from it, because pixels are real."""
        return (self.fourier_shape[0], self.fourier_shape[1] // 2 + 1)

    def spectra(self, maps: Float[Tensor, "n c h w"]) -> Complex[Tensor, "f n c"]:
        """Transform maps of the size of the input or of the output."""
        spectra: Tensor = torch.fft.rfft2(maps.contiguous(), s=self.fourier_shape)
        # A transposed copy of a matrix is much faster than one of a tensor with more axes.
        by_frequency = spectra.view(-1, math.prod(self.half_shape)).t().contiguous()
        return by_frequency.view(-1, *maps.shape[:2])

    def output(self, spectra: Complex[Tensor, "f n d"]) -> Float[Tensor, "n d h w"]:
        """Transform back and cut to the size of the output."""
        by_map = spectra.view(len(spectra), -1).t().contiguous()
        maps: Tensor = torch.fft.irfft2(
            by_map.view(*spectra.shape[1:], *self.half_shape), s=self.fourier_shape
        )
        return maps[..., : self.out_shape[0], : self.out_shape[1]]

    def kernel_spectra(self, kernels: Float[Tensor, "d c ky kx"]) -> Complex[Tensor, "f c d"]:
        """Return the matrices that an input's spectra are to be multiplied with."""
        cosine, sine = _waves(self, like=kernels)
        flat = rearrange(kernels, "d c ky kx -> (ky kx) (c d)")
        return torch.complex(cosine @ flat, sine @ flat).view(-1, kernels.shape[1], kernels.shape[0])

    def kernel_gradient(
        self, maps: Float[Tensor, "n c h w"], grad: Float[Tensor, "n d h_out w_out"]
    ) -> Float[Tensor, "d c ky kx"]:
        """Return the gradient of the kernels from an input and the gradient of its output."""
        num_in, num_out = maps.shape[1], grad.shape[1]
        dtype = torch.promote_types(maps.dtype, torch.complex64)
        cross = torch.zeros(math.prod(self.half_shape), num_out, num_in, dtype=dtype, device=maps.device)
        for chunk in self.chunks(len(maps), num_in + num_out):
            cross.baddbmm_(self.spectra(grad[chunk]).mT.conj(), self.spectra(maps[chunk]))
        cosine, sine = _waves(self, like=maps)
        share = _shares(self, maps.dtype, maps.device)
        flat = cross.flatten(1)
        gradient = (cosine * share).t() @ flat.real - (sine * share).t() @ flat.imag
        return rearrange(gradient, "(ky kx) (d c) -> d c ky kx", ky=self.kernel, d=num_out).contiguous()

    def chunks(self, num_maps: int, channels: int) -> Iterable[slice]:
        """Cut maps into chunks whose spectra, over all ``channels``, fit into a fixed amount of memory."""
        size = min(max(1, _CHUNK_BYTES // (8 * math.prod(self.half_shape) * channels)), num_maps)
        starts = range(0, num_maps, size)
        return alike([slice(start, min(start + size, num_maps)) for start in starts], times=num_maps / size)


def _waves(plan: FourierPlan, *, like: Tensor) -> tuple[Float[Tensor, "f k"], Float[Tensor, "f k"]]:
    """Return cosine and sine of every frequency at every pixel of a kernel."""
    # The cost model's tensors have no contents: they must neither get into the cache nor out of it.
    make = _make_waves.__wrapped__ if isinstance(like, FakeTensor) else _make_waves
    return make(plan, like.dtype, like.device)


@cache
def _make_waves(
    plan: FourierPlan, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "f k"], Float[Tensor, "f k"]]:
    place = torch.arange(plan.kernel).double() - plan.padding
    row_phase, column_phase = (
        torch.outer(torch.arange(half).double() / size, place)
        for half, size in zip(plan.half_shape, plan.fourier_shape, strict=True)
    )
    phase = rearrange(row_phase, "fy ky -> fy 1 ky 1") + rearrange(column_phase, "fx kx -> 1 fx 1 kx")
    turns = 2 * math.pi * rearrange(phase, "fy fx ky kx -> (fy fx) (ky kx)")
    return torch.cos(turns).to(device, dtype), torch.sin(turns).to(device, dtype)


def _shares(plan: FourierPlan, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "f 1"]:
    """Return the weight of each frequency in a transform back; twice where it stands for its conjugate."""
    rows, columns = plan.fourier_shape
    twice = torch.full((columns // 2 + 1,), 2.0)
    twice[0] = 1
    if columns % 2 == 0:
        twice[-1] = 1
    return (twice / (rows * columns)).repeat(rows).unsqueeze(1).to(device, dtype)


def fourier_conv2d(
    maps: Float[Tensor, "n c h w"], kernels: Float[Tensor, "d c k k"], *, padding: int = 0
) -> Float[Tensor, "n d h_out w_out"]:
    """Do what ``torch.nn.functional.conv2d`` does, in at least single precision.

    Args:
        maps: input maps.
        kernels: square kernels.
        padding: zeros around the input, less than the kernels' size.
    """
    if maps.dtype in (torch.bfloat16, torch.float16):
        maps = maps.float()
    convolved: Tensor = _FourierConv2d.apply(maps, kernels.to(maps.dtype), padding)
    return convolved


def conv2d(
    maps: Float[Tensor, "n c h w"], kernels: Float[Tensor, "d c k k"], *, padding: int = 0
) -> Float[Tensor, "n d h_out w_out"]:
    """Convolve in the way that is faster for the kernels on the device."""
    if prefers_fourier(maps.device, kernels.shape[-1]):
        return fourier_conv2d(maps, kernels, padding=padding)
    return functional.conv2d(maps, kernels, padding=padding)


def prefers_fourier(device: torch.device, kernel: int) -> bool:
    """Whether the Fourier transform is the faster way: on a CPU, with kernels of 7 x 7 and more."""
    return device.type == "cpu" and kernel >= 7


class _FourierConv2d(torch.autograd.Function):
    """Keeps maps and kernels for the backward pass and none of the spectra, which are larger.

    Autocast is off inside: torch has no spectra of bfloat16.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, maps: Float[Tensor, "n c h w"], kernels: Float[Tensor, "d c k k"], padding: int
    ) -> Float[Tensor, "n d h_out w_out"]:
        num_out, num_in, size, _ = kernels.shape
        plan = FourierPlan(in_shape=(maps.shape[2], maps.shape[3]), kernel=size, padding=padding)
        ctx.plan = plan
        ctx.save_for_backward(maps, kernels)
        spectra = plan.kernel_spectra(kernels)
        out = maps.new_empty(len(maps), num_out, *plan.out_shape)
        for chunk in plan.chunks(len(maps), num_in + num_out):
            out[chunk] = plan.output(torch.bmm(plan.spectra(maps[chunk]), spectra))
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, kernels = ctx.saved_tensors
        grad_maps = grad_kernels = None
        if ctx.needs_input_grad[0]:
            # The adjoint of a convolution is one with mirrored kernels and swapped channels.
            padding = kernels.shape[-1] - 1 - ctx.plan.padding
            grad_maps = fourier_conv2d(grad_outputs[0], adjoint_kernels(kernels), padding=padding)
        if ctx.needs_input_grad[1]:
            grad_kernels = ctx.plan.kernel_gradient(maps, grad_outputs[0])
        return grad_maps, grad_kernels, None


def adjoint_kernels(kernels: Float[Tensor, "d c k k"]) -> Float[Tensor, "c d k k"]:
    """Return the kernels that carry the gradient of a convolution back to its input."""
    return rearrange(kernels.flip(2, 3), "d c ky kx -> c d ky kx")
