"""ViV1T ("ViViT" in the paper): a transformer over the patches of a step, then over the steps of a patch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from models.checks import check_types, require, require_choice, require_counts, require_rates
from models.encoder import Core, Encoder, SessionSpec, check_sessions
from models.nonlinearities import OUTPUTS
from models.position_encodings import PositionEncoding, PositionEncodingName
from models.readouts.behavior_gaussian import BehaviorGaussianReadout
from models.readouts.gaussian import GaussianReadout
from models.shifter import Shifter
from models.tokenizer import PatchGrid, Tokenizer
from models.transformer import BlockConfig, BlockName, FeedForwardActivation, Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class ViViTConfig:
    """The ViV1T encoder; the defaults are the published model.

    The paper describes readout, preprocessing and training as the baseline's; the released code, which
    produced the published score, differs: an exponential output, a behavior path in every readout, all
    four signals as input planes. The defaults follow the code. The released scaling of the videos
    (divided by deviation minus mean) belongs to the data, not to the model.

    Attributes:
        embedding_dim: features of a token.
        patch_dropout: rate for the features of a new token.
        position_encoding: codes added to the tokens.
        spatial_depth: blocks that mix the patches of one step.
        spatial_patch_size: rows and columns of a patch, pixels.
        spatial_patch_stride: pixels between neighboring patches.
        temporal_depth: blocks that mix the steps of one patch; they look into the future, too.
        temporal_patch_size: frames of a patch.
        temporal_patch_stride: frames between two steps. Above 1, steps are counted from the end of the
            clip and a frame is predicted by the first step that ends at it or later, so that every
            predicted frame lies inside of its patch.
        num_heads: attention heads of every block.
        head_dim: features of a head.
        attention_dropout: rate for the features that attention returns ("MHA dropout").
        ff_dim: hidden features of the feed-forward nets.
        ff_activation: their nonlinearity.
        ff_dropout: rate for their hidden features.
        drop_path: rate at which a row (a step, or a patch's column of steps) skips a branch of a block.
        block: attention and feed-forward net side by side or one after the other.
        qk_norm: normalize queries and keys.
        behavior: "channels" appends pupil dilation, running speed and the pupil's center to the video as
            planes; "none" leaves them to the readout.
        readout_behavior: let a small net of the four signals shift the features every neuron reads.
        shifter: shift the readout with the pupil's center.
        position_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the readouts' weights at the start, drawn around 0; 0 as
            published, where all neurons begin with the mean of the features.
        output: nonlinearity that makes rates.
        max_frames: longest clip; fixes how many learnable time codes there are.
        checkpointing: keep only the blocks' inputs in training and compute the rest twice.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, Table 3 and A.3; released code of ViV1T.
    """

    embedding_dim: int = 112
    patch_dropout: float = 0.1338
    position_encoding: PositionEncodingName = "learnable"
    spatial_depth: int = 3
    spatial_patch_size: int = 7
    spatial_patch_stride: int = 2
    temporal_depth: int = 5
    temporal_patch_size: int = 25
    temporal_patch_stride: int = 1
    num_heads: int = 11
    head_dim: int = 48
    attention_dropout: float = 0.3580
    ff_dim: int = 136
    ff_activation: FeedForwardActivation = "gelu"
    ff_dropout: float = 0.0592
    drop_path: float = 0.0505
    block: BlockName = "parallel"
    qk_norm: bool = False
    behavior: Literal["none", "channels"] = "channels"
    readout_behavior: bool = True
    shifter: bool = True
    position_sigma: float = 1.0
    weight_spread: float = 0.0
    output: str = "exponential"
    max_frames: int = 300
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_types(self)
        require_counts(self, *_AT_LEAST_ONE)
        require_rates(self, *_RATES)
        require_choice("output", self.output, OUTPUTS)
        require(self.position_sigma > 0, "position_sigma", self.position_sigma, "positive")
        require(self.weight_spread >= 0, "weight_spread", self.weight_spread, "at least 0")
        for name, limit in _LIMITS.items():
            most = getattr(self, limit)
            require(getattr(self, name) <= most, name, getattr(self, name), f"at most {limit}, {most}")

    @property
    def warmup_frames(self) -> int:
        """Leading frames without a prediction: all of the first patch but its last."""
        return self.temporal_patch_size - 1

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames: no, attention sees the clip."""
        return False

    @property
    def grid(self) -> PatchGrid:
        """Where the patches lie."""
        return PatchGrid(
            spatial_size=self.spatial_patch_size,
            spatial_stride=self.spatial_patch_stride,
            temporal_size=self.temporal_patch_size,
            temporal_stride=self.temporal_patch_stride,
        )

    @property
    def blocks(self) -> BlockConfig:
        """What every transformer block is made of."""
        return BlockConfig(
            embedding_dim=self.embedding_dim,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            attention_dropout=self.attention_dropout,
            ff_dim=self.ff_dim,
            ff_activation=self.ff_activation,
            ff_dropout=self.ff_dropout,
            drop_path=self.drop_path,
            qk_norm=self.qk_norm,
        )

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> Encoder:
        """Build the encoder; parameters are drawn from torch's current generator."""
        check_sessions(sessions)
        core = ViViTCore(self, frame_shape)
        readout = BehaviorGaussianReadout if self.readout_behavior else GaussianReadout
        readouts = {
            spec.session: readout(
                spec,
                core.out_channels,
                init_sigma=self.position_sigma,
                weight_spread=self.weight_spread,
            )
            for spec in sessions
        }
        return Encoder(
            core,
            readouts,
            output=OUTPUTS[self.output](),
            warmup_frames=self.warmup_frames,
            shifters={spec.session: Shifter(5) for spec in sessions} if self.shifter else None,
        )


_AT_LEAST_ONE = (
    "embedding_dim",
    "spatial_depth",
    "spatial_patch_size",
    "spatial_patch_stride",
    "temporal_depth",
    "temporal_patch_size",
    "temporal_patch_stride",
    "num_heads",
    "head_dim",
    "ff_dim",
    "max_frames",
)
_RATES = ("patch_dropout", "attention_dropout", "ff_dropout", "drop_path")
_LIMITS = {
    "spatial_patch_stride": "spatial_patch_size",
    "temporal_patch_stride": "temporal_patch_size",
    "temporal_patch_size": "max_frames",
}


class ViViTCore(Core):
    """Tokens of overlapping patches, mixed first within each step, then along time for each patch.

    Raises:
        ValueError: a patch is larger than a frame.
    """

    def __init__(self, config: ViViTConfig, frame_shape: tuple[int, int]) -> None:
        super().__init__()
        self.grid = config.grid
        self.max_frames = config.max_frames
        self.behavior = config.behavior
        self.out_channels = config.embedding_dim
        self.out_shape = self.grid.rows_and_columns(frame_shape)
        self.tokenizer = Tokenizer(
            self.grid,
            num_planes=0 if config.behavior == "none" else 4,
            embedding_dim=config.embedding_dim,
            dropout=config.patch_dropout,
        )
        self.position_encoding = PositionEncoding(
            config.position_encoding,
            num_steps=self.grid.num_steps(config.max_frames),
            num_patches=self.out_shape[0] * self.out_shape[1],
            embedding_dim=config.embedding_dim,
        )
        self.spatial_transformer, self.temporal_transformer = (
            Transformer(config.block, config.blocks, depth=depth, checkpointing=config.checkpointing)
            for depth in (config.spatial_depth, config.temporal_depth)
        )

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
    ) -> Float[Tensor, "b d t_out h_out w_out"]:
        """Return the features of the frames from ``temporal_patch_size - 1`` on.

        Raises:
            ValueError: the clip is shorter than a patch or longer than ``max_frames``.
        """
        num_frames = video.shape[2]
        if num_frames > self.max_frames:
            raise ValueError(
                f"a clip has {num_frames} frames, but must have at most max_frames, {self.max_frames}"
            )
        # The last step ends with the clip; frames that fill no step are dropped at its start.
        spare = num_frames - self._frames_used(num_frames)
        planes = torch.cat([behavior, pupil], dim=1) if self.behavior == "channels" else behavior[:, :0]
        tokens = self.position_encoding(self.tokenizer(video[:, :, spare:], planes[:, :, spare:]))
        num_clips = tokens.shape[0]
        tokens = self.spatial_transformer(rearrange(tokens, "b t p d -> (b t) p d"))
        tokens = self.temporal_transformer(rearrange(tokens, "(b t) p d -> (b p) t d", b=num_clips))
        features: Tensor = rearrange(tokens, "(b h w) t d -> b d t h w", b=num_clips, h=self.out_shape[0])
        if self.grid.temporal_stride == 1:
            return features
        return features[:, :, self._step_of_frame(num_frames).to(features.device)]

    def _frames_used(self, num_frames: int) -> int:
        """Return how many frames, counted from the end of a clip, the steps cover."""
        return (self.grid.num_steps(num_frames) - 1) * self.grid.temporal_stride + self.grid.temporal_size

    def _step_of_frame(self, num_frames: int) -> Int[Tensor, " t_out"]:
        """Return the step that predicts each frame: the first one that ends at the frame or later."""
        frames_before_end = torch.arange(num_frames - self.grid.temporal_size, -1, -1)
        return self.grid.num_steps(num_frames) - 1 - frames_before_end // self.grid.temporal_stride
