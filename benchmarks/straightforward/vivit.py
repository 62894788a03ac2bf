"""ViV1T with the matrix of all patches, torch's dropout and one fused projection."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.straightforward.shared import PlainGaussian, gaussian_positions, planes, sample


class PlainViViT(PlainGaussian):
    """Unfold, normalize and project the patches; then transformer blocks (the parallel kind)."""

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Embed the patches and mix them, first within steps, then along time."""
        core = self.encoder.core
        tokens = self._tokens(planes(video, torch.cat([behavior, pupil], dim=1)))
        tokens = tokens + core.position_encoding.spatial
        tokens = tokens + core.position_encoding.temporal[: tokens.shape[1], None]
        num_clips = len(tokens)
        tokens = tokens.flatten(0, 1)
        for block in core.spatial_transformer.blocks:
            tokens = self._block(block, tokens)
        tokens = tokens.unflatten(0, (num_clips, -1)).transpose(1, 2).flatten(0, 1)
        for block in core.temporal_transformer.blocks:
            tokens = self._block(block, tokens)
        return tokens.unflatten(0, (num_clips, *core.out_shape)).permute(0, 4, 3, 1, 2)

    def _tokens(self, inputs: Tensor) -> Tensor:
        tokenizer = self.encoder.core.tokenizer
        grid = tokenizer.grid
        patches = inputs.unfold(2, grid.temporal_size, grid.temporal_stride)
        for axis in (3, 4):
            patches = patches.unfold(axis, grid.spatial_size, grid.spatial_stride)
        patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(2, 3)
        tokens = tokenizer.output_norm(tokenizer.projection(tokenizer.norm(patches)))
        return functional.dropout(tokens, tokenizer.dropout.p, self.training)

    def _block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        heads = block.attention.num_heads
        width = block.attention.width
        widths = [*[width] * 3, len(block.fused.weight) - 3 * width]
        query, key, value, hidden = block.fused(block.norm(tokens)).split(widths, dim=-1)
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        activation, output = block.feed_forward
        branches = (
            self._dropped_linear(block.attention_output, attended),
            self._dropped_linear(output, activation(hidden)),
        )
        return tokens + block.drop_path(branches[0]) + block.drop_path(branches[1])

    def _dropped_linear(self, layer: nn.Module, features: Tensor) -> Tensor:
        return functional.linear(functional.dropout(features, layer.rate, self.training), layer.weight)

    def read(
        self, readout: nn.Module, features: Tensor, behavior: Tensor, pupil: Tensor, shift: Tensor | None
    ) -> Tensor:
        """Add the code of behavior to every neuron's features."""
        num_clips, _, num_frames = features.shape[:3]
        positions = gaussian_positions(readout, num_clips * num_frames, shift)
        signals = torch.cat([behavior, pupil], dim=1).transpose(1, 2).flatten(0, 1)
        sampled = sample(features, positions) + readout.behavior_code(signals)[:, :, None]
        read = (sampled * readout.weights).sum(dim=1) + readout.bias
        return read.unflatten(0, (num_clips, num_frames)).transpose(1, 2)
