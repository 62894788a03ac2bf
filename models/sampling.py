"""Read feature maps at positions between their pixels, without a copy of the features per neuron."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def sample_and_dot(
    features: Float[Tensor, "f d h w"],
    positions: Float[Tensor, "f n 2"] | Float[Tensor, "n 2"],
    weights: Float[Tensor, "d n"],
) -> Float[Tensor, "f n"]:
    """Read the features at each neuron's position and weight them with the neuron's weights.

    Between pixels the features are interpolated bilinearly, outside of the map they are zero, as with
    ``grid_sample(..., align_corners=True)``. But nothing of size (frames, neurons, channels) is ever
    stored: a neuron's four pixels are multiplied with its weights where they are, and only the four
    products are kept for the gradients.

    Args:
        features: feature maps of frames.
        positions: column and row of each neuron, -1 and 1 at the centers of the first and last pixel;
            without frame axis, the same in all frames.
        weights: one weight per channel and neuron; its precision is the precision of the result.
    """
    num_frames, _, height, width = features.shape
    pixels, shares = _corners(positions.to(weights.dtype), height=height, width=width)
    # Half as long as torch's usual integers: they are sorted, gathered and kept twice as fast.
    first_pixel = torch.arange(num_frames, device=pixels.device, dtype=torch.int32) * (height * width)
    table = rearrange(features, "f d h w -> (f h w) d").to(weights.dtype)
    dots: Tensor = _CornerDots.apply(
        table.contiguous(),
        shares.expand(num_frames, -1, -1),
        rearrange(weights, "d n -> n d").contiguous(),
        pixels + rearrange(first_pixel, "f -> f 1 1"),
    )
    return dots


def _corners(
    positions: Float[Tensor, "*f n 2"], *, height: int, width: int
) -> tuple[Int[Tensor, "*f n 4"], Float[Tensor, "*f n 4"]]:
    """Return the four pixels around each position and the share of each; zero outside of the map."""
    # One direction and one corner at a time: with axes of length two, those are what torch's loops run over.
    columns, column_shares = _neighbors(positions[..., 0], width)
    rows, row_shares = _neighbors(positions[..., 1], height)
    pixels = [row * width + column for row in rows for column in columns]
    shares = [row * column for row in row_shares for column in column_shares]
    return torch.stack(pixels, dim=-1), torch.stack(shares, dim=-1)


def _neighbors(
    positions: Float[Tensor, "*f n"], size: int
) -> tuple[list[Int[Tensor, "*f n"]], list[Float[Tensor, "*f n"]]]:
    """Return, in one direction, the pixels before and behind each position and the share of each."""
    location = (positions + 1) * ((size - 1) / 2)
    with torch.no_grad():
        # A position far outside would not fit an integer; one pixel outside, all shares are zero already.
        near = location.floor().clamp(-2, size)
        both = (near, near + 1)
        inside = [(pixel >= 0) & (pixel <= size - 1) for pixel in both]
        pixels = [pixel.clamp(0, size - 1).int() for pixel in both]
    fraction = location - near
    return pixels, [share * mask for share, mask in zip((1 - fraction, fraction), inside, strict=True)]


class _CornerDots(torch.autograd.Function):
    """Sum over four rows of a table: share of the row times its dot product with the neuron's weights.

    As a matrix this is a sparse one (four entries per frame and neuron) between two dense ones, for
    which torch has the parts: an embedding bag is "sparse times dense" and the gradient of its
    per-sample weights is "dense times dense, at the entries of a sparse one".
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Float[Tensor, "pixels d"],
        shares: Float[Tensor, "f n 4"],
        weights: Float[Tensor, "n d"],
        rows: Int[Tensor, "f n 4"],
    ) -> Float[Tensor, "f n"]:
        """Return the readout of each frame and neuron."""
        neuron = _neuron_of(rows)
        # The operator asks for offsets but reads the neuron of each entry from ``neuron`` alone.
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            weights, table, rows.flatten(), neuron[:1], neuron, 0
        ).view_as(rows)
        ctx.save_for_backward(table, shares, weights, rows, dots)
        result: Tensor = (dots * shares).sum(dim=-1)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of table, shares and weights."""
        table, shares, weights, rows, dots = ctx.saved_tensors
        grad = rearrange(grad_outputs[0], "f n -> f n 1")
        entries = shares * grad
        return (
            _grad_table(table, weights, rows, entries) if ctx.needs_input_grad[0] else None,
            dots * grad if ctx.needs_input_grad[1] else None,
            _grad_weights(table, rows, entries) if ctx.needs_input_grad[2] else None,
            None,
        )


def _neuron_of(rows: Int[Tensor, "f n 4"]) -> Int[Tensor, " entries"]:
    """Return the neuron of each entry of ``rows``, flattened."""
    num_frames, num_neurons, num_corners = rows.shape
    neuron = rearrange(torch.arange(num_neurons, device=rows.device, dtype=rows.dtype), "n -> 1 n 1")
    return neuron.expand(num_frames, -1, num_corners).flatten().contiguous()


def _grad_weights(
    table: Float[Tensor, "pixels d"], rows: Int[Tensor, "f n 4"], entries: Float[Tensor, "f n 4"]
) -> Float[Tensor, "n d"]:
    """Sum the table's rows a neuron has read, weighted with the entries."""
    by_neuron = "f n corner -> n (f corner)"
    return functional.embedding_bag(
        rearrange(rows, by_neuron), table, per_sample_weights=rearrange(entries, by_neuron), mode="sum"
    )


def _grad_table(
    table: Float[Tensor, "pixels d"],
    weights: Float[Tensor, "n d"],
    rows: Int[Tensor, "f n 4"],
    entries: Float[Tensor, "f n 4"],
) -> Float[Tensor, "pixels d"]:
    """Sum, for each row of the table, the weights of the neurons that have read it."""
    # Sorting by row makes this a sum over bags: no atomic additions, so the result is reproducible.
    sorted_rows, order = torch.sort(rows.flatten(), stable=True)
    starts = torch.arange(len(table), device=rows.device, dtype=rows.dtype)
    first = torch.searchsorted(sorted_rows, starts, out_int32=True)
    return functional.embedding_bag(
        _neuron_of(rows)[order], weights, first, per_sample_weights=entries.flatten()[order], mode="sum"
    )
