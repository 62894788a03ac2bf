"""Matrix products over the channels of channels-last features, alone and with batch normalization."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def pointwise(
    features: Float[Tensor, "b t h w d"],
    weight: Float[Tensor, "e d"],
    bias: Float[Tensor, " e"] | None = None,
) -> Float[Tensor, "b t h w e"]:
    """Apply one matrix to every position.

    As a 1 x 1 convolution: for tall, thin products torch's matrix library uses one core on the CPU
    where its convolutions use all.
    """
    images = rearrange(features, "b t h w d -> (b t) d h w")
    mixed = functional.conv2d(images, rearrange(weight, "e d -> e d 1 1"), bias)
    return rearrange(mixed, "(b t) e h w -> b t h w e", b=len(features))


def batch_norm(features: Float[Tensor, "*rest d"], norm: nn.BatchNorm1d) -> Float[Tensor, "*rest d"]:
    """Normalize every channel over all positions of all clips."""
    result: Tensor = norm(features.reshape(-1, features.shape[-1]))
    return result.view_as(features)


def pointwise_batch_norm(
    features: Float[Tensor, "b t h w d"], weight: Float[Tensor, "e d"], norm: nn.BatchNorm1d
) -> Float[Tensor, "b t h w e"]:
    """Return ``norm(pointwise(features, weight))`` in one product.

    Mean and variance of the product follow from the mean and the covariance of its input: mean W m and
    variance diag(W C W^T). Where the product has several times as many channels as its input, this saves
    the passes over it that batch normalization takes, forward and backward, and one copy of it.
    """
    if not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
    else:
        mean, variance = _product_statistics(features, weight)
        _track(norm, mean.detach(), variance.detach(), count=features[..., 0].numel())
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return pointwise(features, weight * rearrange(scale, "e -> e 1"), norm.bias - scale * mean)


def _product_statistics(
    features: Float[Tensor, "b t h w d"], weight: Float[Tensor, "e d"]
) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
    """Return mean and (biased) variance over positions of ``pointwise(features, weight)``."""
    # Half precision would lose the variance of channels whose mean is large.
    with torch.autocast(features.device.type, enabled=False):
        rows = rearrange(features, "b t h w d -> (b t) (h w) d").float()
        weight = weight.float()
        mean = rows.mean(dim=(0, 1))
        centered = rows - mean
        # One small product per frame and their sum: a single tall one would run on one core.
        covariance = torch.bmm(centered.mT, centered).sum(dim=0) / rows[..., 0].numel()
        return weight @ mean, ((weight @ covariance) * weight).sum(dim=1).clamp(min=0)


@torch.no_grad()
def _track(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, *, count: int) -> None:
    """Update running statistics as torch's batch normalization does."""
    if count < 2:
        raise ValueError(
            f"batch normalization got {count} value per channel, but must have at least 2 in training"
        )
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype) * (count / (count - 1)), norm.momentum)
