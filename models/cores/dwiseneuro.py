"""DwiseNeuro: its configuration and how its parts are joined."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.checks import check_types, require, require_counts, require_rates
from models.cores.depthwise import DepthwiseConfig, DepthwiseCore, initialize_convolutions
from models.encoder import Encoder, SessionSpec, check_sessions
from models.nonlinearities import Softplus
from models.readouts.cortex import GroupedReadout


@dataclass(frozen=True, slots=True, kw_only=True)
class DwiseNeuroConfig:
    """The DwiseNeuro encoder; the defaults are the first of its two published stages.

    The second stage, which learns from the first one's predictions, is ``expansion=6``. Paper and README
    count "four blocks with 64 output channels, three with 128, two with 256": these are the blocks' input
    widths; ``channels`` are what the code's blocks put out. Neither says that the cortex starts with a
    factor of four.

    Attributes:
        canvas: rows and columns of the zero canvas in whose middle the frames lie; None is the size of the
            frames, whatever it is.
        stem_channels: channels made of the five input planes.
        channels: channels that each block puts out.
        strides: spatial stride of each block.
        expansion: hidden channels of a block per input channel; 7 in stage 1, 6 in stage 2.
        spatial_kernel: side of the depthwise kernels in space.
        temporal_kernel: length of the depthwise kernels in time.
        squeeze: hidden channels of a block per hidden channel of its gate.
        drop_path: rate at which a clip would skip a block after the last; block i of n has i/n of it.
        cortex_channels: channels of the cortex' layers.
        groups: groups of the cortex' and readouts' channels.
        cortex_drop_path: rate at which a clip skips a layer of the cortex.
        readout_dropout: rate for the channels a readout sees.
        softplus_beta: sharpness of the output nonlinearity; its value at 0 is log(2) / beta, 9.9 as
            published.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.1; released code of lRomul/sensorium.
    """

    canvas: tuple[int, int] | None = (64, 64)
    stem_channels: int = 64
    channels: tuple[int, ...] = (64, 64, 64, 128, 128, 128, 256, 256, 256)
    strides: tuple[int, ...] = (2, 1, 1, 1, 2, 1, 1, 2, 1)
    expansion: int = 7
    spatial_kernel: int = 3
    temporal_kernel: int = 5
    squeeze: int = 32
    drop_path: float = 0.1
    cortex_channels: tuple[int, ...] = (1024, 2048, 4096)
    groups: int = 2
    cortex_drop_path: float = 0.1
    readout_dropout: float = 0.4
    softplus_beta: float = 0.07

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_types(self)
        require_counts(self, "stem_channels", "expansion", "squeeze", "groups")
        require_rates(self, "drop_path", "cortex_drop_path", "readout_dropout")
        require(self.softplus_beta > 0, "softplus_beta", self.softplus_beta, "positive")
        for name in ("canvas", "channels", "strides", "cortex_channels"):
            value = getattr(self, name)
            are_counts = value is None or (len(value) > 0 and min(value) >= 1)
            require(are_counts, name, value, "one or more numbers of at least 1")
        for name in ("spatial_kernel", "temporal_kernel"):
            size = getattr(self, name)
            require(size >= 1 and size % 2 == 1, name, size, "odd: padding keeps the size")
        self._check_together()

    def _check_together(self) -> None:
        num_blocks = len(self.channels)
        one_each = f"one entry per block, {num_blocks}"
        require(len(self.strides) == num_blocks, "strides", self.strides, one_each)
        for width in (self.channels[-1], *self.cortex_channels):
            rule = f"a divisor of the last of channels and all of cortex_channels, {width}"
            require(width % self.groups == 0, "groups", self.groups, rule)

    @property
    def warmup_frames(self) -> int:
        """Leading frames without a prediction: none, every frame of a clip has one."""
        return 0

    @property
    def core(self) -> DepthwiseConfig:
        """What the core is made of."""
        return DepthwiseConfig(
            stem_channels=self.stem_channels,
            channels=self.channels,
            strides=self.strides,
            expansion=self.expansion,
            spatial_kernel=self.spatial_kernel,
            temporal_kernel=self.temporal_kernel,
            squeeze=self.squeeze,
            drop_path=self.drop_path,
            cortex_channels=self.cortex_channels,
            cortex_groups=self.groups,
            cortex_drop_path=self.cortex_drop_path,
        )

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames: no, it sees the clip."""
        return False

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> Encoder:
        """Build the encoder; parameters are drawn from torch's current generator."""
        check_sessions(sessions)
        core = DepthwiseCore(self.core, frame_shape, canvas=self.canvas or frame_shape)
        readouts = {
            spec.session: GroupedReadout(
                spec, core.out_channels, groups=self.groups, dropout=self.readout_dropout
            )
            for spec in sessions
        }
        for readout in readouts.values():
            initialize_convolutions(readout)
        return Encoder(core, readouts, output=Softplus(self.softplus_beta), warmup_frames=self.warmup_frames)
