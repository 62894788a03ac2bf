"""Overlapping space-time patches of a video, normalized and projected to tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Where the patches of a clip lie.

    Attributes:
        spatial_size: rows and columns of a patch, pixels.
        spatial_stride: pixels between neighboring patches.
        temporal_size: frames of a patch.
        temporal_stride: frames between successive patches.
    """

    spatial_size: int
    spatial_stride: int
    temporal_size: int
    temporal_stride: int

    def rows_and_columns(self, frame_shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many patches fit along the rows and columns of a frame.

        Raises:
            ValueError: a patch is larger than a frame.
        """
        if self.spatial_size > min(frame_shape):
            raise ValueError(
                f"spatial_patch_size is {self.spatial_size}, but must be at most {min(frame_shape)}, "
                f"the smaller side of a {frame_shape[0]} x {frame_shape[1]} frame"
            )
        rows, columns = ((side - self.spatial_size) // self.spatial_stride + 1 for side in frame_shape)
        return rows, columns

    def num_steps(self, num_frames: int) -> int:
        """Return how many patches fit along time.

        Raises:
            ValueError: the clip is shorter than a patch.
        """
        if num_frames < self.temporal_size:
            raise ValueError(
                f"a clip has {num_frames} frames, but must have at least temporal_patch_size, "
                f"{self.temporal_size}"
            )
        return (num_frames - self.temporal_size) // self.temporal_stride + 1


class Tokenizer(nn.Module):
    """Layer norm, linear projection, layer norm and dropout of every patch.

    A patch holds the video's pixels and, for each plane (a signal that is the same all over the frame,
    such as running speed), as many equal entries; features are ordered channel, frame, row, column.

    The matrix of all patches (6,125 numbers a token in the published model, 2.9 GB for 300 frames) is never
    built. With gain g and offset o of the norm, mean m and deviation s of a patch x,
    ``W (g (x - m) / s + o) + b = ((W g) x - m (W g) 1) / s + (W o + b)``: ``(W g) x`` is a convolution,
    which for a plane needs only the sum of its weights over rows and columns, and m and s are combined
    from the moments of single frames.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.3 (tubelet embedding), and the released code.
    """

    def __init__(self, grid: PatchGrid, *, num_planes: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.grid = grid
        self.num_channels = 1 + num_planes
        patch_dim = self.num_channels * grid.temporal_size * grid.spatial_size**2
        self.norm = nn.LayerNorm(patch_dim)
        self.projection = nn.Linear(patch_dim, embedding_dim)
        self.output_norm = nn.LayerNorm(embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, video: Float[Tensor, "b 1 t h w"], planes: Float[Tensor, "b c t"]
    ) -> Float[Tensor, "b t_steps p d"]:
        """Return one token for each patch, steps first, patches row by row."""
        patches = self._frame_patches(video)
        mean, deviation = self._moments(patches, planes)
        weight = self.projection.weight * self.norm.weight
        bias = self.projection.weight @ self.norm.bias + self.projection.bias
        projected = self._project(patches, planes, weight=weight) - mean[:, :, None] * weight.sum(1)[:, None]
        tokens = projected / deviation[:, :, None] + bias[:, None]
        tokens = rearrange(tokens, "b p d t -> b t p d")
        result: Tensor = self.dropout(self.output_norm(tokens))
        return result

    def _frame_patches(self, video: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b p pixel t"]:
        """Return the patches of each single frame."""
        size, stride = self.grid.spatial_size, self.grid.spatial_stride
        windows = video[:, 0].unfold(2, size, stride).unfold(3, size, stride)
        return rearrange(windows, "b t rows columns h w -> b (rows columns) (h w) t")

    def _project(
        self,
        patches: Float[Tensor, "b p pixel t"],
        planes: Float[Tensor, "b c t"],
        *,
        weight: Float[Tensor, "d patch"],
    ) -> Float[Tensor, "b p d t_steps"]:
        """Multiply every patch, as it is, with ``weight``."""
        size, stride = self.grid.spatial_size, self.grid.temporal_stride
        kernel = rearrange(weight, "d (c t pixel) -> c d pixel t", c=self.num_channels, pixel=size**2)
        flat = rearrange(patches, "b p pixel t -> (b p) pixel t")
        projected = functional.conv1d(flat, kernel[0], stride=stride)
        projected = rearrange(projected, "(b p) d t -> b p d t", p=patches.shape[1])
        if planes.shape[1] == 0:
            return projected
        plane_kernel = rearrange(kernel[1:].sum(2), "c d t -> d c t")
        return projected + functional.conv1d(planes, plane_kernel, stride=stride)[:, None]

    def _moments(
        self, patches: Float[Tensor, "b p pixel t"], planes: Float[Tensor, "b c t"]
    ) -> tuple[Float[Tensor, "b p t_steps"], Float[Tensor, "b p t_steps"]]:
        """Return mean and deviation of every patch, combined from the moments of single frames.

        A sum of squares minus the square of a sum would cancel where the video is bright and flat.
        """
        variance, mean = torch.var_mean(patches.float(), dim=2, correction=0)
        within = self._steps(variance).mean(dim=-1)
        between, mean = torch.var_mean(self._steps(mean), dim=-1, correction=0)
        variance = within + between
        if planes.shape[1] > 0:
            values = rearrange(self._steps(planes.float()), "b c t frame -> b 1 t (c frame)")
            plane_variance, plane_mean = torch.var_mean(values, dim=-1, correction=0)
            share = 1 / self.num_channels
            variance = torch.lerp(plane_variance, variance, share)
            variance = variance + share * (1 - share) * (mean - plane_mean) ** 2
            mean = torch.lerp(plane_mean, mean, share)
        return mean, torch.sqrt(variance + self.norm.eps)

    def _steps(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t_steps frame"]:
        """Return the frames of each step of a signal, without copying."""
        return signal.unfold(2, self.grid.temporal_size, self.grid.temporal_stride)
