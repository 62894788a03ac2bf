"""Convolve a frame together with signals that are the same all over it."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def convolve_with_planes(
    video: Float[Tensor, "f 1 h w"],
    signals: Float[Tensor, "f signals"],
    weight: Float[Tensor, "d channels kh kw"],
    *,
    bias: Float[Tensor, " d"] | None,
) -> Float[Tensor, "f d h_out w_out"]:
    """Convolve, without padding, channels of which all but the first are constant planes.

    A constant plane leaves an unpadded convolution as a constant: the sum of the kernel times the
    signal. So the planes are never built, and cost nothing.

    Args:
        video: first input channel.
        signals: value of each further channel.
        weight: kernels over the video and the signals, in this order.
        bias: added to the result.
    """
    offset = functional.linear(signals, weight[:, 1:].sum(dim=(2, 3)), bias)
    return functional.conv2d(video, weight[:, :1]) + rearrange(offset, "f d -> f d 1 1")
