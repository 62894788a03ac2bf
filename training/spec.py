"""What a run is: everything that, with the recordings, decides its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.folds import SplitConfig
from data.normalization import NormalizationConfig
from data.sampling import LoaderConfig
from data.windows import WindowPlan
from models.encoder import ModelConfig
from models.registry import MODELS, make_model
from training.augmentation import CutMixConfig
from training.device import ComputeConfig
from training.distillation import DistillationConfig
from training.losses import LossConfig
from training.names import flatten, nearest, with_values
from training.optimization import OptimizerConfig
from training.schedules import EpochCosineConfig, PlateauConfig, ScheduleConfig, StepCosineConfig

SCHEDULES: dict[str, type[PlateauConfig] | type[EpochCosineConfig] | type[StepCosineConfig]] = {
    "plateau": PlateauConfig,
    "epoch_cosine": EpochCosineConfig,
    "step_cosine": StepCosineConfig,
}
"""Learning-rate schedules by the name under which they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """How trials are cut when a trained encoder predicts them.

    Attributes:
        windows: the plan that scores and predictions for others are made with.
        hop_while_training: hop of the plan that scores each epoch; None takes the plan as it is. DwiseNeuro's
            plan computes every frame 16 times, which is too dear for every epoch.
        batch_windows: windows computed at once.
    """

    windows: WindowPlan = field(default_factory=WindowPlan)
    hop_while_training: int | None = None
    batch_windows: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run. Every leaf has a dotted name (``model.spatial_depth``), the same in every place.

    Attributes:
        model: the encoder.
        loader: which clips a step sees.
        split: which trials are trained on and which choose.
        normalization: units of everything that enters the encoder, and of what it predicts.
        loss: what training minimizes.
        optimizer: how.
        schedule: the learning rate over time, and when to stop.
        cutmix: mixing of clips.
        distillation: learning from the encoder of another run.
        inference: how trials are cut for prediction.
        compute: device and precision.
        epochs: at most this many.
        seed: of parameters, clips and noise.
    """

    model: ModelConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=PlateauConfig)
    cutmix: CutMixConfig = field(default_factory=CutMixConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    epochs: int = 200
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}, but must be at least 1")
        if self.loader.clip_frames <= self.model.warmup_frames:
            raise ValueError(
                f"loader.clip_frames is {self.loader.clip_frames}, but must be more than the "
                f"{self.model.warmup_frames} frames that the model needs before it predicts"
            )

        if self.loss.needs_whole_batch and self.loader.order == "mixed":
            raise ValueError(
                "loader.order is 'mixed' with loss.correlation_weight above 0, but the correlation needs a "
                "batch of every session: use 'round' or 'cycle'"
            )

    @property
    def family(self) -> str:
        """Name of the model family in the registry."""
        return next(name for name, config in MODELS.items() if type(self.model) is config)


def to_plain(spec: RunSpec) -> dict[str, Any]:
    """Return a run as plain values: the families of its parts, and every leaf by dotted name."""
    schedule = next(name for name, config in SCHEDULES.items() if type(spec.schedule) is config)
    return {"model": spec.family, "schedule": schedule, "values": _plain(flatten(spec))}


def from_plain(described: Mapping[str, Any]) -> RunSpec:
    """Read what ``to_plain`` wrote.

    Raises:
        ValueError: it names a family, schedule or hyperparameter that does not exist here.
    """
    if not isinstance(described, Mapping) or not {"model", "schedule", "values"} <= described.keys():
        raise ValueError("a specification must be an object with model, schedule and values")
    schedule = described["schedule"]
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}{nearest(schedule, SCHEDULES)}")
    # The bare model may need longer clips than the default loader draws; the loader's values come with it.
    values = dict(described["values"])
    frames = max(LoaderConfig().clip_frames, make_model(described["model"]).warmup_frames + 1)
    start = RunSpec(
        model=make_model(described["model"]),
        schedule=SCHEDULES[schedule](),
        loader=LoaderConfig(clip_frames=frames),
    )
    return with_values(start, values)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [str(part) if isinstance(part, str) else part for part in value]
        if isinstance(value, tuple)
        else (str(value) if isinstance(value, str) else value)
        for name, value in values.items()
    }
