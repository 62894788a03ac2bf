"""The GRU baseline: a rotation-equivariant convolutional core and a convolutional GRU over its frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.checks import check_types, require, require_counts
from models.conv_gru import ConvGRU
from models.cores.hermite import HermiteKernels
from models.encoder import Core, Encoder, SessionSpec
from models.eval_cache import EvalCache
from models.fixed_norm import gain_and_offset
from models.fourier import conv2d
from models.gaussian_encoder import build_gaussian_encoder, check_readout_settings
from models.input_planes import convolve_with_planes
from models.positions import Covariance
from models.smoothness import spatial_roughness


@dataclass(frozen=True, slots=True, kw_only=True)
class GRUConfig:
    """Settings of the GRU baseline; the defaults are the published ones.

    Attributes:
        num_layers: layers of the rotation-equivariant core.
        features: features of each layer, before rotation.
        num_rotations: angles at which every feature is computed; a layer has features times rotations
            channels.
        input_kernel: rows and columns of the first layer's kernels.
        hidden_kernel: rows and columns of the other layers' kernels; odd.
        coefficient_std: spread of the kernels' coefficients at the start.
        norm_momentum: share of the newest batch in the running statistics.
        gru_channels: channels of the recurrent state.
        gru_input_kernel: rows and columns of the GRU's kernels on the core's features; odd.
        gru_recurrent_kernel: rows and columns of the GRU's kernels on its state; odd.
        smoothness: weight of the roughness of the first layer's kernels.
        sparsity: weight of the mean norm of the other layers' kernels.
        position_hidden: width of the readouts' position networks.
        position_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the readouts' weights at the start, drawn around 0; 0 as
            published, where all neurons begin with the mean of the features.
        position_covariance: shape of the position noise.
        shifter_hidden: width of the shifters; 0 for none.
        output: output nonlinearity.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, section 5 and table 5; initialization and regularizers
        from the benchmark notebook of the Sensorium 2023 starter kit.
    """

    num_layers: int = 4
    features: int = 8
    num_rotations: int = 8
    input_kernel: int = 9
    hidden_kernel: int = 7
    coefficient_std: float = 0.1
    norm_momentum: float = 0.9
    gru_channels: int = 64
    gru_input_kernel: int = 9
    gru_recurrent_kernel: int = 9
    smoothness: float = 500.0
    sparsity: float = 500_000.0
    position_hidden: int = 30
    position_sigma: float = 1.0
    weight_spread: float = 0.0
    position_covariance: Covariance = "full"
    shifter_hidden: int = 5
    output: str = "elu_plus_one"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        check_types(self)
        require_counts(self, "num_layers", "features", "num_rotations", "input_kernel", "gru_channels")
        for name in ("hidden_kernel", "gru_input_kernel", "gru_recurrent_kernel"):
            size = getattr(self, name)
            require(size >= 1 and size % 2 == 1, name, size, "odd, so that maps keep their size")
        for name in ("smoothness", "sparsity"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.coefficient_std > 0, "coefficient_std", self.coefficient_std, "positive")
        require(0 < self.norm_momentum <= 1, "norm_momentum", self.norm_momentum, "above 0 and at most 1")
        check_readout_settings(self)

    @property
    def warmup_frames(self) -> int:
        """Leading frames without a prediction: none."""
        return 0

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames: yes."""
        return True

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> Encoder:
        """Build the encoder; parameters are drawn from torch's current generator."""
        return build_gaussian_encoder(GRUCore(self, frame_shape), sessions, self)


class GRUCore(Core):
    """Rotation-equivariant layers on every frame, then a convolutional GRU over the frames.

    Pupil dilation and running speed enter beside the video, as planes that are constant over the frame.

    Args:
        config: the settings.
        frame_shape: rows and columns of a video frame.
    """

    def __init__(self, config: GRUConfig, frame_shape: tuple[int, int]) -> None:
        super().__init__()
        lost = config.input_kernel - 1
        if min(frame_shape) <= lost:
            raise ValueError(
                f"frame_shape is {frame_shape}, but must be more than {lost} in both directions, which the "
                "unpadded input_kernel takes away; choose a smaller one"
            )
        self.smoothness, self.sparsity = config.smoothness, config.sparsity
        self.out_channels = config.gru_channels
        self.out_shape = (frame_shape[0] - lost, frame_shape[1] - lost)
        self.layers = nn.ModuleList(EquivariantLayer(config, index) for index in range(config.num_layers))
        self.gru = ConvGRU(
            config.features * config.num_rotations,
            config.gru_channels,
            input_kernel=config.gru_input_kernel,
            recurrent_kernel=config.gru_recurrent_kernel,
        )

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],  # noqa: ARG002 - this core does not know the pupil's center
    ) -> Float[Tensor, "b d t h_out w_out"]:
        """Return the state of the GRU after every frame."""
        frames = rearrange(video, "b 1 t h w -> (b t) 1 h w")
        frames = self.layers[0](frames, rearrange(behavior, "b signal t -> (b t) signal"))
        for layer in self.layers[1:]:
            # No nonlinearity follows the last layer.
            frames = layer(functional.elu(frames), None)
        states: Tensor = self.gru(rearrange(frames, "(b t) d h w -> b d t h w", b=len(video)))
        return states

    def regularizer(self) -> Float[Tensor, ""]:
        """Return the weighted roughness of the first layer's kernels and norm of the other layers'."""
        first, *others = [layer.kernels() for layer in self.layers if isinstance(layer, EquivariantLayer)]
        penalty = self.smoothness * spatial_roughness(first)
        if others:
            norms = torch.stack([kernels.flatten(2).norm(dim=2).mean() for kernels in others])
            penalty = penalty + self.sparsity * norms.mean()
        return penalty


class EquivariantLayer(nn.Module):
    """Convolution with kernels at every rotation, and batch norm that treats all rotations alike.

    Args:
        config: the settings.
        index: which layer; the first one is not padded and its input has no rotations.
    """

    def __init__(self, config: GRUConfig, index: int) -> None:
        super().__init__()
        channels = config.features * config.num_rotations
        self.num_rotations = config.num_rotations
        self.padding = config.hidden_kernel // 2 if index else 0
        self.kernels = HermiteKernels(
            channels if index else 3,
            config.features,
            size=config.hidden_kernel if index else config.input_kernel,
            num_rotations=config.num_rotations,
            rotating_input=index > 0,
            init_std=config.coefficient_std,
        )
        self.norm = nn.BatchNorm2d(config.features, momentum=config.norm_momentum)
        self.cache = EvalCache()

    def forward(
        self, frames: Float[Tensor, "f c h w"], signals: Float[Tensor, "f s"] | None
    ) -> Float[Tensor, "f d h_out w_out"]:
        """Convolve and normalize.

        Args:
            frames: maps of each frame.
            signals: values of constant planes that are further channels of the frames.
        """
        if not self.training:
            _, offset = gain_and_offset(self.norm)
            maps = self._convolved(frames, signals, self.cache.get(self._state(), self._normalizing_kernels))
            return maps + repeat(offset, "d -> (rotation d) 1 1", rotation=self.num_rotations)
        maps = self._convolved(frames, signals, self.kernels())
        alike = rearrange(maps, "f (rotation d) h w -> (f rotation) d h w", rotation=self.num_rotations)
        normalized: Tensor = self.norm(alike)
        return rearrange(normalized, "(f rotation) d h w -> f (rotation d) h w", f=len(maps))

    def _convolved(self, frames: Tensor, signals: Tensor | None, kernels: Tensor) -> Tensor:
        if signals is not None:
            return convolve_with_planes(frames, signals, kernels, bias=None)
        return conv2d(frames, kernels, padding=self.padding)

    def _normalizing_kernels(self) -> Float[Tensor, "d c y x"]:
        """Return the kernels with the gain that batch norm applies in evaluation."""
        gain, _ = gain_and_offset(self.norm)
        kernels: Tensor = self.kernels()
        return kernels * repeat(gain, "d -> (rotation d) 1 1 1", rotation=self.num_rotations)

    def _state(self) -> list[Tensor]:
        """Return all that ``_normalizing_kernels`` depends on."""
        assert self.norm.running_var is not None
        return [self.kernels.bases, self.kernels.coefficients, self.norm.weight, self.norm.running_var]
