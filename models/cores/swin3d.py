"""Dynamic-V1FM's core: a 3D shifted-window transformer that hears the animal's behavior in every block."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.attention import biased_attention
from models.depthwise3d import gated_depthwise3d
from models.drop_path import DropPath
from models.encoder import Core
from models.eval_cache import EvalCache
from models.pointwise import pointwise
from models.transformer import initialize_linear
from models.windows3d import WindowGroup, WindowLayout

BlockNorm = Literal["none", "layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinConfig:
    """What the core is made of; see ``V1FMConfig`` for the fields."""

    channels: int
    depth: int
    num_heads: int
    window: tuple[int, int, int]
    shift: tuple[int, int, int]
    patch: tuple[int, int, int]
    mlp_channels: int
    block_norm: BlockNorm
    dropout: float
    drop_path: float
    checkpointing: bool


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, projected and normalized; zeros at the end complete the last patch."""

    def __init__(self, patch: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv3d(1, channels, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, video: Float[Tensor, "b 1 t h w"]) -> Float[Tensor, "b tokens steps_h steps_w d"]:
        """Return one token per patch, channels last."""
        ends = [-size % patch for size, patch in zip(video.shape[2:], self.patch, strict=True)]
        video = functional.pad(video, (0, ends[2], 0, ends[1], 0, ends[0]))
        pt, ph, pw = self.patch
        patches = rearrange(video, "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        weight = rearrange(self.projection.weight, "d c pt ph pw -> d (c pt ph pw)")
        tokens: Tensor = self.norm(functional.linear(patches, weight, self.projection.bias))
        return tokens


class BehaviorEmbedding(nn.Module):
    """A small net of a frame's four signals; the frames of one patch lie side by side in the channels."""

    def __init__(self, channels: int, patch_frames: int) -> None:
        super().__init__()
        self.patch_frames = patch_frames
        width = channels // patch_frames
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())

    def forward(self, signals: Float[Tensor, "b 4 t"]) -> Float[Tensor, "b steps 1 1 d"]:
        """Return what is added to all tokens of each step."""
        embedded = self.layers(rearrange(signals, "b signal t -> b t signal"))
        added: Tensor = rearrange(embedded, "b (t pt) d -> b t 1 1 (pt d)", pt=self.patch_frames)
        return added


class WindowAttention(nn.Module):
    """Multi-head attention within shifted windows, with a learned bias per relative position.

    Padding that completes a window is a token like any other (Swin masks only the seams of the roll), so
    its key and value are the projection's biases.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.output = nn.Linear(config.channels, config.channels)
        offsets = math.prod(2 * size - 1 for size in config.window)
        self.position_bias = nn.Parameter(torch.empty(offsets, config.num_heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.cache = EvalCache()

    def forward(self, tokens: Float[Tensor, "b t h w d"], layout: WindowLayout) -> Float[Tensor, "b t h w d"]:
        """Mix the tokens of each window."""
        grid = tokens.shape[1:4]
        projected = pointwise(tokens, self.qkv.weight, self.qkv.bias)
        qkv = rearrange(projected, "b t h w d -> b (t h w) d").index_select(1, layout.order)
        # The layout is the same in every call: it belongs to the core.
        biases = self.cache.get((self.position_bias,), lambda: self._biases(layout))
        attended = torch.cat(
            [
                self._attend(part, group, bias)
                for part, group, bias in zip(
                    qkv.split(layout.sizes, dim=1), layout.groups, biases, strict=True
                )
            ],
            dim=1,
        )
        attended = attended.index_select(1, layout.places).unflatten(1, grid)
        return pointwise(attended, self.output.weight, self.output.bias)

    def _biases(self, layout: WindowLayout) -> list[Float[Tensor, "heads l keys"]]:
        """Return the bias of each group of windows."""
        table = rearrange(self.position_bias, "offset head -> head offset").contiguous()
        return [group.bias(table) for group in layout.groups if isinstance(group, WindowGroup)]

    def _attend(
        self, qkv: Float[Tensor, "b tokens d3"], group: nn.Module, bias: Float[Tensor, "heads l keys"]
    ) -> Float[Tensor, "b tokens d"]:
        assert isinstance(group, WindowGroup)
        query, key, value = rearrange(
            qkv,
            "b (windows l) (three head d) -> three (b windows) head l d",
            three=3,
            head=self.num_heads,
            l=group.num_tokens,
        ).unbind()
        if group.padded:
            _, pad_key, pad_value = rearrange(
                self.qkv.bias.to(qkv.dtype),
                "(three head d) -> three 1 head 1 d",
                three=3,
                head=self.num_heads,
            ).unbind()
            key = torch.cat([key, pad_key.expand(len(key), -1, -1, -1)], dim=2)
            value = torch.cat([value, pad_value.expand(len(value), -1, -1, -1)], dim=2)
        attended = biased_attention(query, key, value, bias=bias)
        joined: Tensor = rearrange(
            attended, "(b windows) head l d -> b (windows l) (head d)", windows=group.num_windows
        )
        return joined


class GatedConvMLP(nn.Module):
    """SwiGLU, then a depthwise convolution over the neighbors in space and time, GELU, and back."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(channels, 2 * hidden)
        self.convolution = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.output = nn.Linear(hidden, channels)

    def forward(self, tokens: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        """Transform every token, with a look at its 26 neighbors."""
        hidden = pointwise(tokens, self.input.weight, self.input.bias)
        hidden = gated_depthwise3d(hidden, self.convolution.weight, self.convolution.bias)
        return pointwise(functional.gelu(hidden), self.output.weight, self.output.bias)


class SwinBlock(nn.Module):
    """Add behavior, then attention and MLP with their residual connections."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.behavior = BehaviorEmbedding(config.channels, config.patch[0])
        self.attention = WindowAttention(config)
        self.mlp = GatedConvMLP(config.channels, config.mlp_channels)
        self.attention_norm, self.mlp_norm = _norm(config), _norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "b t h w d"],
        signals: Float[Tensor, "b 4 frames"],
        layout: WindowLayout,
    ) -> Float[Tensor, "b t h w d"]:
        """Transform the tokens of a clip."""
        tokens = tokens + self.behavior(signals)
        tokens = tokens + self._branch(self.attention(self.attention_norm(tokens), layout))
        return tokens + self._branch(self.mlp(self.mlp_norm(tokens)))

    def _branch(self, features: Tensor) -> Tensor:
        kept: Tensor = self.drop_path(self.dropout(features))
        return kept


def _norm(config: SwinConfig) -> nn.Module:
    return nn.LayerNorm(config.channels) if config.block_norm == "layer" else nn.Identity()


class SwinCore(Core):
    """Patches of video, mixed within shifted 3D windows.

    Args:
        config: what the core is made of.
        frame_shape: rows and columns of a frame.
        clip_frames: frames of every clip; the windows are laid out for them.

    Source:
        Dynamic-V1FM in Turishcheva et al. 2024, arXiv:2407.09100, A.2, after Liu et al. 2022, Video Swin
        Transformer.
    """

    def __init__(self, config: SwinConfig, frame_shape: tuple[int, int], *, clip_frames: int) -> None:
        super().__init__()
        self.clip_frames, self.checkpointing = clip_frames, config.checkpointing
        sizes = (clip_frames, *frame_shape)
        grid = tuple(math.ceil(size / patch) for size, patch in zip(sizes, config.patch, strict=True))
        self.out_channels, self.out_shape = config.channels, (grid[1], grid[2])
        self.layout = WindowLayout((grid[0], grid[1], grid[2]), window=config.window, shift=config.shift)
        self.patches = PatchEmbedding(config.patch, config.channels)
        self.blocks = nn.ModuleList(SwinBlock(config) for _ in range(config.depth))
        # The convolutions keep torch's initialization, as in the released code.
        initialize_linear(self.blocks)

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
    ) -> Float[Tensor, "b d steps h_out w_out"]:
        """Return one feature map per step; the steps stand for the last frames of the clip.

        Raises:
            ValueError: the clip is shorter or longer than the core was built for.
        """
        if video.shape[2] != self.clip_frames:
            raise ValueError(
                f"the clip has {video.shape[2]} frames, but must have clip_frames, {self.clip_frames}: "
                f"cut it into windows of {self.clip_frames} frames, of which the model predicts the last ones"
            )
        signals = torch.cat([behavior, pupil], dim=1)
        tokens = self.patches(video)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, signals, self.layout, use_reentrant=False)
            else:
                tokens = block(tokens, signals, self.layout)
        features: Tensor = rearrange(tokens, "b t h w d -> b d t h w")
        return features
