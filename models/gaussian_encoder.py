"""What the encoders with plain Gaussian readouts have in common: readouts, shifters and their settings."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from models.checks import require, require_choice
from models.encoder import Core, Encoder, SessionSpec, check_sessions
from models.nonlinearities import OUTPUTS
from models.positions import COVARIANCES, Covariance
from models.readouts.gaussian import GaussianReadout
from models.shifter import Shifter


@runtime_checkable
class GaussianEncoderConfig(Protocol):
    """The settings beside those of the core.

    Attributes:
        position_hidden: width of the readouts' position networks.
        position_sigma: range of the position noise's factors at the start.
        weight_spread: standard deviation of the readouts' weights at the start.
        position_covariance: shape of the position noise.
        shifter_hidden: width of the shifters; 0 for none.
        output: output nonlinearity.
    """

    @property
    def position_hidden(self) -> int: ...  # noqa: D102
    @property
    def position_sigma(self) -> float: ...  # noqa: D102
    @property
    def weight_spread(self) -> float: ...  # noqa: D102
    @property
    def position_covariance(self) -> Covariance: ...  # noqa: D102
    @property
    def shifter_hidden(self) -> int: ...  # noqa: D102
    @property
    def output(self) -> str: ...  # noqa: D102
    @property
    def warmup_frames(self) -> int: ...  # noqa: D102


def check_readout_settings(config: GaussianEncoderConfig) -> None:
    """Refuse settings that cannot work."""
    require(config.position_hidden >= 1, "position_hidden", config.position_hidden, "at least 1")
    require(config.position_sigma > 0, "position_sigma", config.position_sigma, "positive")
    require(config.weight_spread >= 0, "weight_spread", config.weight_spread, "at least 0")
    require_choice("position_covariance", config.position_covariance, COVARIANCES)
    require(config.shifter_hidden >= 0, "shifter_hidden", config.shifter_hidden, "at least 0")
    require_choice("output", config.output, OUTPUTS)


def build_gaussian_encoder(
    core: Core, sessions: Sequence[SessionSpec], config: GaussianEncoderConfig
) -> Encoder:
    """Give a core a Gaussian readout and a shifter for each session."""
    check_sessions(sessions)
    readouts = {
        spec.session: GaussianReadout(
            spec,
            core.out_channels,
            hidden=config.position_hidden,
            init_sigma=config.position_sigma,
            weight_spread=config.weight_spread,
            covariance=config.position_covariance,
        )
        for spec in sessions
    }
    shifters = {spec.session: Shifter(config.shifter_hidden) for spec in sessions if config.shifter_hidden}
    return Encoder(
        core,
        readouts,
        output=OUTPUTS[config.output](),
        warmup_frames=config.warmup_frames,
        shifters=shifters,
    )
