"""Dynamic-V1FM: its configuration and how its parts are joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

from models.checks import check_types, require, require_choice, require_counts, require_rates
from models.cores.swin3d import BlockNorm, SwinConfig, SwinCore
from models.encoder import Encoder, Readout, SessionSpec, check_sessions
from models.heads import HeadsEncoder, HeadsReadout
from models.nonlinearities import OUTPUTS
from models.readouts.hierarchical import Fusion, HierarchicalReadout
from models.shifter import Shifter


@dataclass(frozen=True, slots=True, kw_only=True)
class V1FMConfig:
    """The Dynamic-V1FM encoder; the defaults are one of the 31 members of the published ensemble.

    The 31 recipes are 31 settings of ``levels`` and ``fusion``: the 15 non-empty subsets of (2, 4, 8, 16)
    with either fusion, and the plain Gaussian readout, ``levels=()``.

    The paper draws a normalization in each block; the released code, which produced the published score,
    has none (``block_norm``). The paper explains the second half of the ensemble by "feature enhancement
    modules"; in the code both halves have the same nets per level and differ by ``fusion``. The defaults
    follow the code.

    Attributes:
        clip_frames: frames of every clip, in training and prediction. The step of patch k predicts frame
            ``warmup_frames + k``, so a clip gives predictions for its last ``clip_frames / patch[0]`` frames.
        patch: frames, rows and columns of a patch.
        channels: features of a token.
        depth: blocks.
        num_heads: attention heads of a block.
        window: steps, rows and columns of an attention window.
        shift: how far the windows are shifted, in every block.
        mlp_channels: hidden features of a block's MLP behind its gate.
        block_norm: "layer" puts a LayerNorm in front of attention and MLP.
        dropout: rate for the features that attention and MLP return.
        drop_path: rate at which a clip skips a branch of a block.
        levels: coarse levels of the readout: at level f, every f neighboring neurons (by index) share
            weights and position.
        fusion: how the levels become one prediction: their mean, or a sum weighted per clip by a small net.
        heads: several readouts of each session on one core, each named by its fusion and levels
            ("mean-2-4", "adaptive-8", "plain"); they replace ``levels`` and ``fusion``. The prediction is the
            mean of theirs, the loss the mean of theirs; they share the shifter. Not published: the 31 members
            of the published ensemble each have a core.
        unused_levels: also build the parameters of all published levels that ``levels`` leaves out, as the
            released code does; they change nothing but the count.
        position_hidden: width of the net that predicts positions from cortical coordinates.
        init_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the readouts' weights at the start, drawn around 0; 0 as
            published, where all neurons begin with the mean of the features.
        shifter_hidden: width of the shifter.
        output: nonlinearity that makes rates.
        checkpointing: keep only the blocks' inputs in training and compute the rest twice.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.2; released code of Dynamic-VFM.
    """

    clip_frames: int = 30
    patch: tuple[int, int, int] = (2, 2, 2)
    channels: int = 224
    depth: int = 4
    num_heads: int = 4
    window: tuple[int, int, int] = (8, 7, 7)
    shift: tuple[int, int, int] = (4, 3, 3)
    mlp_channels: int = 488
    block_norm: BlockNorm = "none"
    dropout: float = 0.0
    drop_path: float = 0.0
    levels: tuple[int, ...] = (2, 4, 8, 16)
    fusion: Fusion = "mean"
    heads: tuple[str, ...] = ()
    unused_levels: bool = False
    position_hidden: int = 32
    init_sigma: float = 0.2
    weight_spread: float = 0.0
    shifter_hidden: int = 16
    output: str = "elu_plus_one"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_types(self)
        require_counts(self, "clip_frames", "channels", "depth", "num_heads", "mlp_channels")
        require_counts(self, "position_hidden", "shifter_hidden")
        require_rates(self, "dropout", "drop_path")
        require_choice("output", self.output, OUTPUTS)
        require(self.init_sigma > 0, "init_sigma", self.init_sigma, "positive")
        require(self.weight_spread >= 0, "weight_spread", self.weight_spread, "at least 0")
        self._check_windows()
        self._check_divisions()
        self._check_levels()

    def _check_windows(self) -> None:
        for name, least in (("patch", 1), ("window", 1), ("shift", 0)):
            value = getattr(self, name)
            require(min(value) >= least, name, value, f"three numbers of at least {least}")
        is_less = all(shift < window for shift, window in zip(self.shift, self.window, strict=True))
        require(is_less, "shift", self.shift, f"less than window, {self.window}, on each axis")

    def _check_divisions(self) -> None:
        frames = self.patch[0]
        multiple = f"a multiple of patch[0], {frames}"
        require(self.clip_frames % frames == 0, "clip_frames", self.clip_frames, multiple)
        heads = f"a multiple of num_heads, {self.num_heads}"
        require(self.channels % self.num_heads == 0, "channels", self.channels, heads)
        why = f"{multiple}: the behavior of a patch's frames lies side by side in the channels"
        require(self.channels % frames == 0, "channels", self.channels, why)

    def _check_levels(self) -> None:
        is_ascending = all(a < b for a, b in pairwise((1, *self.levels)))
        ascending = "ascending numbers of at least 2 (level 1 is built in)"
        require(is_ascending, "levels", self.levels, ascending)
        has_levels = self.fusion != "adaptive" or len(self.levels) > 0
        nothing = "'mean' without coarse levels: there is nothing to weigh"
        require(has_levels, "fusion", self.fusion, nothing)
        require(len(set(self.heads)) == len(self.heads), "heads", self.heads, "of names that each stand once")
        for index in range(len(self.heads)):
            self.head(index)

    def head(self, index: int) -> "V1FMConfig":
        """Return the configuration of the core with one of the heads alone.

        Raises:
            ValueError: the head's name is not a fusion and its levels.
        """
        name = self.heads[index]
        fusion, *levels = name.split("-")
        if name == "plain":
            return replace(self, heads=(), levels=(), fusion="mean")
        if fusion not in get_args(Fusion) or not levels or not all(level.isdigit() for level in levels):
            raise ValueError(
                f"head is {name!r}, but must be plain, or a fusion and its levels such as mean-2-4"
            )
        chosen: Fusion = "adaptive" if fusion == "adaptive" else "mean"
        return replace(self, heads=(), levels=tuple(map(int, levels)), fusion=chosen)

    @property
    def num_steps(self) -> int:
        """Steps of tokens in a clip, and frames it gives predictions for."""
        return self.clip_frames // self.patch[0]

    @property
    def warmup_frames(self) -> int:
        """Leading frames without a prediction."""
        return self.clip_frames - self.num_steps

    @property
    def core(self) -> SwinConfig:
        """What the core is made of."""
        return SwinConfig(
            channels=self.channels,
            depth=self.depth,
            num_heads=self.num_heads,
            window=self.window,
            shift=self.shift,
            patch=self.patch,
            mlp_channels=self.mlp_channels,
            block_norm=self.block_norm,
            dropout=self.dropout,
            drop_path=self.drop_path,
            checkpointing=self.checkpointing,
        )

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames: no, it sees the clip."""
        return False

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> Encoder:
        """Build the encoder; parameters are drawn from torch's current generator."""
        check_sessions(sessions)
        core = SwinCore(self.core, frame_shape, clip_frames=self.clip_frames)
        heads = [self.head(index) for index in range(len(self.heads))]
        readouts: dict[str, Readout] = {
            spec.session: HeadsReadout([head._readout(spec) for head in heads])
            if heads
            else self._readout(spec)
            for spec in sessions
        }
        encoder = HeadsEncoder if heads else Encoder
        return encoder(
            core,
            readouts,
            output=OUTPUTS[self.output](),
            warmup_frames=self.warmup_frames,
            shifters={spec.session: Shifter(self.shifter_hidden) for spec in sessions},
        )

    def _readout(self, spec: SessionSpec) -> HierarchicalReadout:
        return HierarchicalReadout(
            spec,
            self.channels,
            levels=self.levels,
            fusion=self.fusion,
            unused_levels=self.unused_levels,
            hidden=self.position_hidden,
            init_sigma=self.init_sigma,
            weight_spread=self.weight_spread,
        )
