"""The factorized baseline: convolutions over space and over time in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.checks import check_types, require, require_counts
from models.encoder import Core, Encoder, SessionSpec
from models.fixed_norm import gain_and_offset
from models.gaussian_encoder import build_gaussian_encoder, check_readout_settings
from models.input_planes import convolve_with_planes
from models.positions import Covariance
from models.smoothness import spatial_roughness, temporal_roughness


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizedConfig:
    """Settings of the factorized 3D convolutional baseline; the defaults are the published ones.

    Attributes:
        channels: channels of each layer.
        input_spatial_kernel: rows and columns of the first layer's kernels.
        hidden_spatial_kernel: rows and columns of the other layers' kernels.
        input_temporal_kernel: frames of the first layer's kernels.
        hidden_temporal_kernel: frames of the other layers' kernels.
        norm_momentum: share of the newest batch in the running statistics.
        spatial_smoothness: weight of the roughness of the first spatial kernels.
        temporal_smoothness: weight of the roughness of the first temporal kernels.
        position_hidden: width of the readouts' position networks.
        position_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the readouts' weights at the start, drawn around 0; 0 as
            published, where all neurons begin with the mean of the features.
        position_covariance: shape of the position noise.
        shifter_hidden: width of the shifters; 0 for none.
        output: output nonlinearity.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, table 5 (layers, channels, spatial kernels); all
        else from the benchmark notebook of the Sensorium 2023 starter kit.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    input_spatial_kernel: int = 11
    hidden_spatial_kernel: int = 5
    input_temporal_kernel: int = 11
    hidden_temporal_kernel: int = 5
    norm_momentum: float = 0.7
    spatial_smoothness: float = 10.0
    temporal_smoothness: float = 0.01
    position_hidden: int = 30
    position_sigma: float = 1.0
    weight_spread: float = 0.0
    position_covariance: Covariance = "full"
    shifter_hidden: int = 5
    output: str = "elu_plus_one"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        check_types(self)
        layers = len(self.channels) > 0 and min(self.channels) > 0
        require(layers, "channels", self.channels, "one positive number for each layer")
        require_counts(self, "input_spatial_kernel", "hidden_spatial_kernel")
        require_counts(self, "input_temporal_kernel", "hidden_temporal_kernel")
        for name in ("spatial_smoothness", "temporal_smoothness"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 < self.norm_momentum <= 1, "norm_momentum", self.norm_momentum, "above 0 and at most 1")
        check_readout_settings(self)

    @property
    def spatial_kernels(self) -> tuple[int, ...]:
        """Rows and columns of each layer's kernels."""
        return (self.input_spatial_kernel, *[self.hidden_spatial_kernel] * (len(self.channels) - 1))

    @property
    def temporal_kernels(self) -> tuple[int, ...]:
        """Frames of each layer's kernels."""
        return (self.input_temporal_kernel, *[self.hidden_temporal_kernel] * (len(self.channels) - 1))

    @property
    def warmup_frames(self) -> int:
        """Frames before the first prediction; every unpadded layer takes its kernel minus one."""
        return sum(self.temporal_kernels) - len(self.channels)

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames: yes."""
        return True

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> Encoder:
        """Build the encoder; parameters are drawn from torch's current generator."""
        return build_gaussian_encoder(FactorizedCore(self, frame_shape), sessions, self)


class FactorizedCore(Core):
    """Layers of a spatial convolution, a temporal convolution, batch norm and ELU; nothing is padded.

    Pupil dilation and running speed enter beside the video, as planes that are constant over the frame.

    Args:
        config: the settings.
        frame_shape: rows and columns of a video frame.
    """

    def __init__(self, config: FactorizedConfig, frame_shape: tuple[int, int]) -> None:
        super().__init__()
        lost = sum(config.spatial_kernels) - len(config.channels)
        if min(frame_shape) <= lost:
            raise ValueError(
                f"frame_shape is {frame_shape}, but must be more than {lost} in both directions, which the "
                "unpadded spatial kernels take away; choose smaller kernels or fewer layers"
            )
        self.spatial_smoothness = config.spatial_smoothness
        self.temporal_smoothness = config.temporal_smoothness
        self.out_channels = config.channels[-1]
        self.out_shape = (frame_shape[0] - lost, frame_shape[1] - lost)
        self.layers = nn.ModuleList(
            FactorizedLayer(
                before, after, spatial_kernel=space, temporal_kernel=time, momentum=config.norm_momentum
            )
            for (before, after), space, time in zip(
                pairwise((3, *config.channels)), config.spatial_kernels, config.temporal_kernels, strict=True
            )
        )

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],  # noqa: ARG002 - this core does not know the pupil's center
    ) -> Float[Tensor, "b d t_out h_out w_out"]:
        """Return the features of the last ``t - warmup_frames`` frames."""
        num_clips = len(video)
        frames = rearrange(video, "b 1 t h w -> (b t) 1 h w")
        signals = rearrange(behavior, "b signal t -> (b t) signal")
        frames = self.layers[0](frames, signals, num_clips=num_clips)
        for layer in self.layers[1:]:
            frames = layer(frames, None, num_clips=num_clips)
        features: Tensor = rearrange(frames, "(b t) d h w -> b d t h w", b=num_clips)
        return features

    def regularizer(self) -> Float[Tensor, ""]:
        """Return the weighted roughness of the first layer's kernels."""
        first = self.layers[0]
        assert isinstance(first, FactorizedLayer)
        spatial = self.spatial_smoothness * spatial_roughness(first.spatial.weight)
        return spatial + self.temporal_smoothness * temporal_roughness(first.temporal.weight.squeeze(-1))


class FactorizedLayer(nn.Module):
    """Spatial convolution, temporal convolution, batch norm, ELU.

    Both convolutions are two-dimensional and work channels-last: over rows and columns of frames, and
    over frames and pixels of clips. With channels last, one is a view of the other.

    Args:
        in_channels: channels of the layer's input.
        out_channels: channels of the layer's output.
        spatial_kernel: rows and columns of the spatial kernels.
        temporal_kernel: frames of the temporal kernels.
        momentum: share of the newest batch in the running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_kernel: int,
        temporal_kernel: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, spatial_kernel)
        self.temporal = nn.Conv2d(out_channels, out_channels, (temporal_kernel, 1))
        self.norm = nn.BatchNorm2d(out_channels, momentum=momentum)
        for convolution in (self.spatial, self.temporal):
            nn.init.xavier_normal_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(
        self,
        frames: Float[Tensor, "f c h w"],
        signals: Float[Tensor, "f s"] | None,
        *,
        num_clips: int,
    ) -> Float[Tensor, "f_out d h_out w_out"]:
        """Return the features of the frames a whole temporal kernel precedes.

        Args:
            frames: the frames of all clips, clip by clip.
            signals: values of constant planes that are further channels of the frames.
            num_clips: how many clips there are.
        """
        if signals is None:
            maps = self.spatial(frames)
        else:
            maps = convolve_with_planes(frames, signals, self.spatial.weight, bias=self.spatial.bias)
        height = maps.shape[2]
        # In two steps: torch does not take a single clip for channels-last when its stride is odd.
        pixels = rearrange(maps, "(b t) d h w -> b t (h w) d", b=num_clips).contiguous()
        clips = rearrange(pixels, "b t p d -> b d t p")
        clips = functional.elu(self._normalized(clips), inplace=True)
        return rearrange(clips, "b d t (h w) -> (b t) d h w", h=height)

    def _normalized(self, clips: Float[Tensor, "b d t p"]) -> Float[Tensor, "b d t_out p"]:
        """Convolve over time and normalize."""
        if self.training:
            normalized: Tensor = self.norm(self.temporal(clips))
            return normalized
        # With fixed statistics the norm is a gain and an offset per channel, which the kernels can take.
        assert self.temporal.bias is not None
        gain, offset = gain_and_offset(self.norm)
        kernels = self.temporal.weight * rearrange(gain, "d -> d 1 1 1")
        return functional.conv2d(clips, kernels, self.temporal.bias * gain + offset)
