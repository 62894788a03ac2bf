"""Normalizations of all published systems, as data; fitted on the train tier, applied on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from data.clips import ClipBatch
from data.moments import recompute_statistics
from data.recording import Recording

Center = Literal["none", "mean", "min"]
Scale = Literal["none", "std", "range", "std_minus_mean"]

_SMALLEST_STD = 0.01
"""Of the mean std: neurons and frames below it are scaled as if they had it (the benchmark's rule)."""

_NEGLIGIBLE_SCALE = 1e-4
"""Of the mean scale: pixels and frames below it count as constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """How one variable becomes ``(value - center) / scale``, for each of its elements and frames.

    Attributes:
        center: what is subtracted.
        scale: what it is divided by; ``std_minus_mean`` is ViV1T's, as released.
    """

    center: Center = "none"
    scale: Scale = "none"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        if self.center not in _CENTERS:
            raise ValueError(f"center is {self.center!r}, but must be one of {', '.join(_CENTERS)}")
        if self.scale not in _SCALES:
            raise ValueError(f"scale is {self.scale!r}, but must be one of {', '.join(_SCALES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationConfig:
    """What a model is shown, and in which unit its responses are.

    Attributes:
        video: for each pixel and frame.
        behavior: for pupil dilation and running speed, for each frame.
        pupil: for each coordinate of the pupil center and each frame.
        responses: ``official`` divides by the std of each neuron and frame, the unit of the benchmark's
            server; ``raw`` leaves them as recorded.
        relu: set negative responses, which are of the order of -1e-7, to 0.
        statistics: take the data set's own, or compute them from the train tier.
    """

    video: ScalingConfig = field(default_factory=ScalingConfig)
    behavior: ScalingConfig = field(default_factory=ScalingConfig)
    pupil: ScalingConfig = field(default_factory=ScalingConfig)
    responses: Literal["official", "raw"] = "official"
    relu: bool = False
    statistics: Literal["official", "recomputed"] = "official"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for name, known in (("responses", ("official", "raw")), ("statistics", ("official", "recomputed"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}")


_CENTERS: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "none": lambda of: torch.zeros_like(of["mean"]),
    "mean": lambda of: of["mean"],
    "min": lambda of: of["min"],
}
_SCALES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "none": lambda of: torch.ones_like(of["mean"]),
    "std": lambda of: of["std"],
    "range": lambda of: of["max"] - of["min"],
    "std_minus_mean": lambda of: of["std"] - of["mean"],
}
_STATISTICS = ("min", "max", "mean", "std")

_Z_SCORE = ScalingConfig(center="mean", scale="std")
_MIN_MAX = ScalingConfig(center="min", scale="range")

BASELINE = NormalizationConfig(video=_Z_SCORE, behavior=ScalingConfig(scale="std"), pupil=_Z_SCORE)
"""GRU, factorized and ensemble baselines, and Dynamic-V1FM."""

VIVIT_MIN_MAX = NormalizationConfig(
    video=_MIN_MAX, behavior=_MIN_MAX, pupil=_MIN_MAX, statistics="recomputed"
)
"""ViV1T with the scaling of its video that its authors meant."""

VIVIT_AS_RELEASED = replace(VIVIT_MIN_MAX, video=ScalingConfig(center="mean", scale="std_minus_mean"))
"""ViV1T as its published weights were trained: mean and std stand where min and max were meant."""

DWISENEURO = NormalizationConfig(responses="raw", relu=True)
"""DwiseNeuro: everything raw, negative responses set to 0; predictions are scaled afterwards."""

NORMALIZATIONS: dict[str, NormalizationConfig] = {
    "baseline": BASELINE,
    "v1fm": BASELINE,
    "vivit": VIVIT_AS_RELEASED,
    "vivit_min_max": VIVIT_MIN_MAX,
    "dwiseneuro": DWISENEURO,
}
"""The published normalization of each system, by name."""


class Normalization(nn.Module):
    """Brings the clips of one session into a model's units, on whatever device they are.

    A module without parameters: ``state_dict`` holds all tables, and a new one is made from them with
    ``Normalization(session, config, tables)``, without the recording. Frames beyond the statistics are
    scaled like the last frame, but their response precision is the largest there is, as in the benchmark
    (which is why they should be neither trained on nor scored).

    Args:
        session: whose clips these are.
        config: what is done.
        tables: ``video_center (t h w)``, ``behavior_center (t 2)``, ``pupil_center (t 2)``, the same with
            ``_scale``, ``precision (t + 1, n)`` with the row of later frames last, and ``mean_response (n)``.

    Attributes:
        precision: factor from raw to official responses.
        mean_response: mean activity over the train tier in the model's unit, for the bias of readouts;
            every frame of a trial counts the same.
    """

    precision: Float[Tensor, "t n"]
    mean_response: Float[Tensor, " n"]

    def __init__(
        self, session: str, config: NormalizationConfig, tables: Mapping[str, Float[Tensor, "..."]]
    ) -> None:
        super().__init__()
        self.session = session
        self.config = config
        for name, table in tables.items():
            self.register_buffer(name, table)

    @classmethod
    def fit(cls, recording: Recording, config: NormalizationConfig) -> "Normalization":
        """Take the statistics of the train tier.

        Raises:
            ValueError: a statistic is missing for frames before the last one it is known for.
        """
        source = (
            recompute_statistics(recording) if config.statistics == "recomputed" else recording.statistics
        )

        def statistics(variable: str) -> dict[str, Tensor]:
            return {
                name: torch.from_numpy(np.moveaxis(source(variable, name), -1, 0).astype(np.float64))
                for name in _STATISTICS
            }

        tables = {}
        for name, variable in (("video", "videos"), ("behavior", "behavior"), ("pupil", "pupil_center")):
            scaling = getattr(config, name)
            what = f"{variable} of {recording.session}"
            tables[f"{name}_center"], tables[f"{name}_scale"] = _scaling_tables(
                scaling, statistics(variable), what=what
            )
        of_responses = statistics("responses")
        precision = response_precision(of_responses["std"])
        tables["precision"] = precision
        tables["mean_response"] = _mean_response(of_responses["mean"], precision, config)
        return cls(recording.session, config, {name: table.float() for name, table in tables.items()})

    def forward(self, clips: ClipBatch) -> ClipBatch:
        """Return the clips in float32 and in the model's units; memory stays time-major.

        Raises:
            ValueError: the clips are of another session.
        """
        if clips.session != self.session:
            raise ValueError(f"session is {clips.session!r}, but must be {self.session!r}")
        frames = clips.frames
        responses = clips.responses
        if responses is not None:
            responses = responses.relu() if self.config.relu else responses
            # In place, in the copied rows: on a CPU this is bound by memory.
            official = self.config.responses == "official"
            responses = self._precision_at(frames).mul_(responses) if official else responses.float()
        return replace(
            clips,
            video=self._scaled("video", clips.video.squeeze(1), frames).unsqueeze(1),
            behavior=self._scaled("behavior", clips.behavior.transpose(1, 2), frames).transpose(1, 2),
            pupil=self._scaled("pupil", clips.pupil.transpose(1, 2), frames).transpose(1, 2),
            responses=responses,
        )

    def to_official(
        self, predicted: Float[Tensor, "b n t"], frames: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b n t"]:
        """Convert from the model's unit to that of the benchmark's server.

        Args:
            predicted: rates (or responses) in the unit that the model is trained in.
            frames: the trial frame of each.
        """
        return predicted if self.config.responses == "official" else predicted * self._precision_at(frames)

    def to_raw(self, predicted: Float[Tensor, "b n t"], frames: Int[Tensor, "b t"]) -> Float[Tensor, "b n t"]:
        """Convert from the model's unit to that of the recording; arguments as in ``to_official``."""
        return predicted if self.config.responses == "raw" else predicted / self._precision_at(frames)

    def _precision_at(self, frames: Int[Tensor, "b t"]) -> Float[Tensor, "b n t"]:
        return self._rows("precision", frames).transpose(1, 2)

    def _scaled(
        self, name: str, values: Shaped[Tensor, "b t ..."], frames: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t ..."]:
        scaling: ScalingConfig = getattr(self.config, name)
        if scaling.center != "none":
            values = values - self._rows(f"{name}_center", frames)
        if scaling.scale != "none":
            values = values / self._rows(f"{name}_scale", frames)
        return values.float()

    def _rows(self, name: str, frames: Int[Tensor, "b t"]) -> Float[Tensor, "b t ..."]:
        table = self.get_buffer(name)
        rows = frames.clamp(max=len(table) - 1)
        return table.index_select(0, rows.flatten()).view(*rows.shape, *table.shape[1:])


def response_precision(std: Float[Tensor, "t n"]) -> Float[Tensor, "t+1 n"]:
    """Return the factor that brings responses into the unit of the benchmark's server.

    It is 1 / std where std is above 1 % of its mean over all neurons and frames; elsewhere (also where
    std is NaN, and for all frames it is not given for) it is 1 / that threshold.

    Args:
        std: over training trials, for each frame and neuron.

    Returns:
        The rows of ``std`` and one more, which is that of all later frames.

    Source:
        neuralpredictors, NeuroNormalizer; the notice of 2023-05-15 on the competition's site.
    """
    threshold = _SMALLEST_STD * std.nanmean()
    if not threshold > 0:
        raise ValueError(f"the mean std of the responses is {float(std.nanmean())}, but must be above 0")
    later = torch.full_like(std[:1], torch.nan)
    std = torch.cat([std, later])
    return torch.where(std > threshold, std, threshold).reciprocal()


def _scaling_tables(
    scaling: ScalingConfig, statistics: Mapping[str, Tensor], *, what: str
) -> tuple[Tensor, Tensor]:
    center, scale = _CENTERS[scaling.center](statistics), _SCALES[scaling.scale](statistics)
    known = (center.isfinite() & scale.isfinite()).flatten(1).all(dim=1)
    num_known = int(known.sum())
    if not num_known or not known[:num_known].all():
        raise ValueError(
            f"the statistics of {what} are known for {num_known} frames, but must be known for an unbroken "
            "stretch from frame 0 on: check the recording, or use statistics='recomputed'"
        )
    center, scale = center[:num_known], scale[:num_known]
    # An element that never changes but for rounding would otherwise be divided by its rounding error.
    constant = scale.abs() <= _NEGLIGIBLE_SCALE * scale.abs().mean()
    return center, torch.where(constant, 1.0, scale)


def _mean_response(
    mean: Float[Tensor, "t n"], precision: Float[Tensor, "t+1 n"], config: NormalizationConfig
) -> Float[Tensor, " n"]:
    in_units = mean * precision[: len(mean)] if config.responses == "official" else mean
    return in_units.nanmean(dim=0)
