"""An encoder: one core for all sessions, a readout (and a shifter) for each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.checks import require


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionSpec:
    """All that a readout may know of a recording.

    Attributes:
        session: name of the recording; also the key of its readout.
        num_neurons: neurons of the session.
        coordinates_um: position of each neuron in cortex (x, y, depth), micrometres.
        mean_response: mean normalized activity of each neuron; starts the readout's bias.
    """

    session: str
    num_neurons: int
    coordinates_um: Float[Tensor, "n 3"]
    mean_response: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        """Refuse what no readout could be built for."""
        is_name = isinstance(self.session, str) and self.session != "" and "." not in self.session
        require(is_name, "session", self.session, "a non-empty name without dots")
        counts = isinstance(self.num_neurons, int) and self.num_neurons >= 1
        require(counts, f"num_neurons of {self.session}", self.num_neurons, "a whole number of at least 1")
        wanted = {"coordinates_um": (self.num_neurons, 3), "mean_response": (self.num_neurons,)}
        for name, shape in wanted.items():
            values = getattr(self, name)
            require(values.shape == shape, f"{name} of {self.session}", tuple(values.shape), f"{shape}")
            # The cost model's tensors have no contents.
            if not values.is_meta and not torch.isfinite(values).all():
                number = int((~torch.isfinite(values)).sum())
                raise ValueError(
                    f"{name} of {self.session} has {number} numbers that are not finite, which would reach "
                    "every neuron's prediction: leave these neurons out"
                )


def check_sessions(sessions: Sequence[SessionSpec]) -> None:
    """Refuse sessions that an encoder could not tell apart, or none at all.

    Raises:
        ValueError: there is no session, or two have one name.
    """
    names = [spec.session for spec in sessions]
    require(len(names) > 0, "sessions", names, "one or more")
    require(len(set(names)) == len(names), "sessions", names, "of different names: each has its own readout")


@runtime_checkable
class ModelConfig(Protocol):
    """What every model family's configuration can do; the fields differ."""

    @property
    def warmup_frames(self) -> int:
        """Leading frames of a clip that get no prediction."""

    @property
    def causal(self) -> bool:
        """Whether the prediction of a frame uses nothing of later frames."""

    def build(self, sessions: Sequence[SessionSpec], frame_shape: tuple[int, int]) -> "Encoder":
        """Build the encoder; parameters are drawn from torch's current generator.

        Args:
            sessions: one readout is built for each.
            frame_shape: rows and columns of a video frame.
        """


class Core(nn.Module):
    """From video (and behavior, where the model feeds it to the core) to features.

    Subclasses set ``out_channels`` and ``out_shape`` (rows and columns of the feature map) and implement
    ``forward(video (b 1 t h w), behavior (b 2 t), pupil (b 2 t)) -> (b d t_out h_out w_out)``.
    """

    out_channels: int
    out_shape: tuple[int, int]

    def regularizer(self) -> Float[Tensor, ""]:
        """Return the core's penalty, already weighted; zero unless a model has one."""
        return torch.zeros((), device=next(self.parameters()).device)


class Readout(nn.Module):
    """From features to the activity of one session's neurons, before the output nonlinearity.

    Subclasses implement ``forward(features (b d t h w), *, behavior (b 2 t), pupil (b 2 t),
    shift (b t 2) or None) -> (b n t)``; behavior and pupil are cut to the features' frames.
    """


class Encoder(nn.Module):
    """Predict the responses of any of its sessions.

    Attributes:
        warmup_frames: leading frames of a clip that get no prediction.
    """

    def __init__(
        self,
        core: Core,
        readouts: Mapping[str, Readout],
        *,
        output: nn.Module,
        warmup_frames: int,
        shifters: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.core = core
        self.readouts = nn.ModuleDict(readouts)
        self.shifters = nn.ModuleDict(shifters or {})
        self.output = output
        self.warmup_frames = warmup_frames

    @property
    def sessions(self) -> tuple[str, ...]:
        """The sessions this encoder has a readout for."""
        return tuple(self.readouts)

    def features(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
    ) -> Float[Tensor, "b d t_out h_out w_out"]:
        """Run the core, which all sessions share.

        Raises:
            ValueError: the clip has no frame that could be predicted, or signals of another length.
        """
        for name, signals in (("behavior", behavior), ("pupil", pupil)):
            if signals.shape[2] != video.shape[2]:
                found, wanted = signals.shape[2], video.shape[2]
                raise ValueError(f"{name} has {found} frames, but must have as many as the video, {wanted}")
        if video.shape[2] <= self.warmup_frames:
            raise ValueError(
                f"clip has {video.shape[2]} frames, but must have more than the {self.warmup_frames} "
                "that this model needs before its first prediction"
            )
        result: Tensor = self.core(video, behavior, pupil)
        return result

    def read(
        self,
        features: Float[Tensor, "b d t_out h_out w_out"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "b n t_out"]:
        """Predict one session's responses from features.

        Raises:
            ValueError: the encoder has no readout for ``session``.
        """
        return self._rates(features, behavior, pupil, session=session)

    def _rates(
        self,
        features: Float[Tensor, "b d t_out h_out w_out"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "k_b n t_out"]:
        """Return what the readout gives as rates, for each clip once or once per head."""
        if session not in self.readouts:
            raise ValueError(f"session is {session!r}, but must be one of {', '.join(self.sessions)}")
        num_frames = features.shape[2]
        behavior, pupil = behavior[..., -num_frames:], pupil[..., -num_frames:]
        shift = self.shifters[session](pupil) if session in self.shifters else None
        rates = self.readouts[session](features, behavior=behavior, pupil=pupil, shift=shift)
        result: Tensor = self.output(rates)
        return result

    def forward(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "b n t_out"]:
        """Predict the responses of one session's neurons.

        Returns:
            Rates for the last ``t - warmup_frames`` frames of the clip.
        """
        return self.read(self.features(video, behavior, pupil), behavior, pupil, session=session)

    def rates_by_head(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "k b n t_out"]:
        """Predict what the loss compares with the responses: once for each head; most models have one."""
        result: Tensor = self(video, behavior, pupil, session=session)
        return result[None]

    def regularizer(self) -> Float[Tensor, ""]:
        """Return the penalty on the core's parameters, already weighted."""
        return self.core.regularizer()

    def core_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters all sessions share."""
        return self.core.parameters()

    def session_parameters(self, session: str | None = None) -> Iterator[nn.Parameter]:
        """Return the parameters of one session's readout and shifter, or of all of them."""
        for name in self.sessions if session is None else (session,):
            yield from self.readouts[name].parameters()
            if name in self.shifters:
                yield from self.shifters[name].parameters()
