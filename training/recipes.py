"""Published runs, as specifications; and the same runs at a scale that two cores train in a minute.

Adding a model needs no line here: a family without a recipe of its own starts from the baselines' training.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

from data.folds import SplitConfig
from data.normalization import BASELINE, DWISENEURO, VIVIT_AS_RELEASED
from data.sampling import LoaderConfig
from data.windows import DWISENEURO_WINDOWS, V1FM_WINDOWS
from models.registry import MODELS, make_model
from training.augmentation import DWISENEURO_CUTMIX
from training.losses import DWISENEURO_LOSS, V1FM_LOSS, VIVIT_LOSS
from training.names import nearest, with_values
from training.optimization import OptimizerConfig
from training.schedules import VIVIT_SCHEDULE, EpochCosineConfig, PlateauConfig, StepCosineConfig
from training.spec import InferenceConfig, RunSpec

Scale = Literal["full", "demo"]

V1FM_LEVELS = (2, 4, 8, 16)


def baseline(family: str) -> RunSpec:
    """Return the training of the factorized and GRU baselines, for any family.

    Source:
        Starter kit, benchmark notebook: 200 epochs, 80-frame clips, 8 of each mouse per step, AdamW at 0.005.
    """
    return RunSpec(
        model=make_model(family),
        normalization=BASELINE,
        optimizer=OptimizerConfig(core_lr=0.005, core_weight_decay=0.01),
        schedule=PlateauConfig(),
        epochs=200,
    )


def vivit() -> RunSpec:
    """Return ViV1T's training.

    Source:
        Turishcheva et al. 2024, Table 3; released code with the README's command. Table 3's learning rate and
        weight decay are the core's; readouts and shifters have 0.0036 and 0.3939. Trained on every labelled
        trial, test tiers of the old mice included, and chosen on oracle; here the hold-out fold chooses.
    """
    return RunSpec(
        model=make_model("vivit"),
        loader=LoaderConfig(clip_frames=140, batch_size=6, order="round"),
        normalization=VIVIT_AS_RELEASED,
        loss=VIVIT_LOSS,
        optimizer=OptimizerConfig(
            core_lr=0.0048, readout_lr=0.0036, core_weight_decay=0.1789, readout_weight_decay=0.3939
        ),
        schedule=VIVIT_SCHEDULE,
        epochs=400,
    )


def v1fm() -> RunSpec:
    """Return Dynamic-V1FM's training, for the member with all levels and mean fusion.

    Source:
        Released code: 180 epochs, 30-frame clips, 32 of one mouse per step, AdamW at 1e-3.
    """
    return RunSpec(
        model=make_model("v1fm"),
        loader=LoaderConfig(clip_frames=30, batch_size=32, order="cycle"),
        normalization=BASELINE,
        loss=V1FM_LOSS,
        optimizer=OptimizerConfig(core_lr=1e-3, core_weight_decay=0.05),
        schedule=EpochCosineConfig(),
        inference=InferenceConfig(windows=V1FM_WINDOWS),
        epochs=180,
    )


def v1fm_members() -> list[RunSpec]:
    """Return the 31 members of the V1FM ensemble: 15 sets of levels by two fusions, and the plain readout.

    Source:
        Turishcheva et al. 2024, A.2; released code, where sets go from four levels down to one.
    """
    sets = [levels for size in (4, 3, 2, 1) for levels in combinations(V1FM_LEVELS, size)]
    values: list[dict[str, Any]] = [
        {"model.levels": levels, "model.fusion": fusion} for fusion in ("mean", "adaptive") for levels in sets
    ]
    return [with_values(v1fm(), chosen) for chosen in [*values, {"model.levels": ()}]]


def dwiseneuro(*, stage: Literal[1, 2] = 1) -> RunSpec:
    """Return DwiseNeuro's training of one fold.

    Args:
        stage: 1 (expansion 7), or 2 (expansion 6), which also learns from the stage-1 model of its fold: set
            ``distillation.teacher``.

    Source:
        Released config: 16 frames at step 2, 32 clips of mixed mice, AdamW at 2.4e-3, 3 + 18 epochs of 7,200
        clips per mouse, CutMix 0.5, average of the parameters with decay 0.999. Trained on every labelled
        trial, oracle included; here on the train tier, because oracle grades. ``split.tiers`` changes that.
    """
    spec = RunSpec(
        model=make_model("dwiseneuro"),
        loader=LoaderConfig(
            clip_frames=16, frame_step=2, batch_size=32, order="mixed", clips_per_session=7200
        ),
        split=SplitConfig(num_folds=7),
        normalization=DWISENEURO,
        loss=DWISENEURO_LOSS,
        optimizer=OptimizerConfig(core_lr=2.4e-3, core_weight_decay=0.05, ema_decay=0.999),
        schedule=StepCosineConfig(),
        cutmix=DWISENEURO_CUTMIX,
        inference=InferenceConfig(windows=DWISENEURO_WINDOWS, hop_while_training=16),
        epochs=21,
    )
    if stage == 1:
        return spec
    return with_values(spec, {"model.expansion": 6, "distillation.ratio": 0.36})


PUBLISHED: dict[str, Callable[[], RunSpec]] = {"vivit": vivit, "v1fm": v1fm, "dwiseneuro": dwiseneuro}
"""Families whose training differs from the baselines'."""


def recipe(family: str, *, scale: Scale = "full") -> RunSpec:
    """Return the published run of a family, or its small relative for two cores.

    Raises:
        ValueError: there is no family of this name.
    """
    if family not in MODELS:
        raise ValueError(f"model is {family!r}{nearest(family, MODELS)}")
    spec = PUBLISHED[family]() if family in PUBLISHED else baseline(family)
    return demo(spec) if scale == "demo" else spec


def demo(spec: RunSpec) -> RunSpec:
    """Return a run that two cores train in about a minute on demo recordings.

    Clips, widths and epochs shrink; the kind of everything stays.
    """
    return with_values(spec, DEMO.get(spec.family, {}))


DEMO: dict[str, dict[str, Any]] = {
    "factorized": {
        "model.channels": (16, 32),
        "model.input_spatial_kernel": 9,
        "model.hidden_spatial_kernel": 3,
        # The answers to a frame last for ten frames, those of real neurons for 20.
        "model.input_temporal_kernel": 17,
        "model.hidden_temporal_kernel": 1,
        "model.position_sigma": 0.05,
        "model.weight_spread": 0.1,
        "loader.clip_frames": 60,
        "loader.batch_size": 2,
        "optimizer.core_lr": 0.01,
        "epochs": 8,
    },
    "gru": {
        "model.num_layers": 1,
        "model.features": 6,
        "model.num_rotations": 4,
        "model.input_kernel": 11,
        "model.gru_channels": 32,
        "model.gru_input_kernel": 3,
        "model.gru_recurrent_kernel": 1,
        # The loss of 300 neurons and small batches is about a two-hundredth of the published one.
        "model.smoothness": 2.5,
        "model.sparsity": 2500.0,
        "model.position_sigma": 0.05,
        "model.weight_spread": 0.1,
        "loader.clip_frames": 40,
        "loader.batch_size": 2,
        "optimizer.core_lr": 0.01,
        "epochs": 6,
    },
    "vivit": {
        "model.embedding_dim": 32,
        "model.spatial_depth": 1,
        "model.temporal_depth": 2,
        "model.num_heads": 2,
        "model.head_dim": 16,
        "model.ff_dim": 64,
        "model.spatial_patch_size": 8,
        "model.spatial_patch_stride": 4,
        "model.temporal_patch_size": 16,
        "model.temporal_patch_stride": 2,
        "model.position_sigma": 0.05,
        "model.weight_spread": 0.1,
        # With few training clips the released scaling divides by almost nothing.
        "normalization.video.center": "min",
        "normalization.video.scale": "range",
        "loader.clip_frames": 60,
        "loader.batch_size": 2,
        "loader.clips_per_session": 160,
        "epochs": 10,
    },
    "v1fm": {
        # A demo frame is one token, so that a step predicts its own frame and all frames of a clip teach.
        "model.patch": (1, 16, 16),
        "model.channels": 32,
        "model.depth": 3,
        "model.num_heads": 2,
        "model.window": (30, 1, 1),
        "model.shift": (0, 0, 0),
        "model.mlp_channels": 64,
        # As the paper draws it: without, hundreds of steps pass before anything moves.
        "model.block_norm": "layer",
        "model.init_sigma": 0.05,
        "model.weight_spread": 0.3,
        "loader.batch_size": 2,
        "optimizer.core_lr": 0.005,
        "schedule.warmup_steps": 10,
        "schedule.constant_epochs": 2,
        # An ensemble trains 31 of these.
        "epochs": 3,
    },
    "dwiseneuro": {
        # Frames of any size, so that a real recording can be tried, too.
        "model.canvas": None,
        "model.stem_channels": 8,
        # Down to a single place, so that the mean over places loses nothing of where a contrast was.
        "model.channels": (16, 32, 64, 64),
        "model.strides": (2, 2, 2, 2),
        "model.drop_path": 0.0,
        "model.cortex_channels": (128, 256),
        "model.cortex_drop_path": 0.0,
        "model.readout_dropout": 0.1,
        # Rates start at 1.4 instead of 9.9, near those of the recordings.
        "model.softplus_beta": 0.5,
        "loader.batch_size": 8,
        "loader.clips_per_session": 480,
        # All cells look at the middle, so the area of a box says little about their answer to it.
        "cutmix.probability": 0.0,
        "optimizer.core_lr": 0.008,
        "optimizer.ema_decay": 0.95,
        "schedule.warmup_epochs": 1,
        "epochs": 6,
    },
}
"""What the demo scale changes, by dotted name."""
