# ruff: noqa: ARG002 - every part is offered all signals, as in the encoder
"""The factorized baseline as 3D convolutions."""

from torch import Tensor
from torch.nn import functional

from benchmarks.straightforward.shared import PlainGaussian, batch_norm, planes


class PlainFactorized(PlainGaussian):
    """A 3D convolution over space and one over time in each layer."""

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Run the layers."""
        features = planes(video, behavior)
        for layer in self.encoder.core.layers:
            spatial, temporal = layer.spatial, layer.temporal
            features = functional.conv3d(features, spatial.weight[:, :, None], spatial.bias)
            features = functional.conv3d(features, temporal.weight[..., None], temporal.bias)
            features = functional.elu(batch_norm(features, layer.norm))
        return features
