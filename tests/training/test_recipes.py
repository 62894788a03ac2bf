"""Recipes: published settings as typed from papers and released code, and demo runs that learn."""

from itertools import chain, combinations

import pytest
import torch

from data.experiment import SimulationConfig
from data.folds import select_trials
from data.recording import Tier
from data.simulation import simulate
from data.sources import open_recordings
from models.registry import MODELS
from training.fit import fit
from training.known_ceiling import known_ceiling, open_truths
from training.material import Material
from training.names import flatten, with_values
from training.predict import score_trials
from training.recipes import DEMO, demo, dwiseneuro, recipe, v1fm_members
from training.spec import from_plain, to_plain

BASELINES = {
    "loader.clip_frames": 80,
    "loader.frame_step": 1,
    "loader.batch_size": 8,
    "loader.order": "round",
    "loader.clips_per_session": None,
    "normalization.video.center": "mean",
    "normalization.video.scale": "std",
    "normalization.behavior.center": "none",
    "normalization.behavior.scale": "std",
    "normalization.pupil.center": "mean",
    "normalization.pupil.scale": "std",
    "normalization.responses": "official",
    "normalization.relu": False,
    "loss.scale": "sqrt_dataset",
    "loss.count": "all",
    "loss.eps": 1e-8,
    "loss.eps_in": "log",
    "loss.correlation_weight": 0.0,
    "optimizer.core_lr": 0.005,
    "optimizer.readout_lr": None,
    "optimizer.core_weight_decay": 0.01,
    "optimizer.readout_weight_decay": None,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.clip_norm": None,
    "optimizer.ema_decay": None,
    "schedule.patience": 5,
    "schedule.plateaus": 4,
    "schedule.resets": False,
    "schedule.factor": 0.3,
    "schedule.rate_patience": 5,
    "schedule.min_factor": 0.02,
    "schedule.tolerance": 1e-6,
    "cutmix.probability": 0.0,
    "inference.windows.length": None,
    "epochs": 200,
    "model.position_hidden": 30,
    "model.position_sigma": 1.0,
    "model.weight_spread": 0.0,
    "model.shifter_hidden": 5,
    "model.output": "elu_plus_one",
}
"""Starter kit of Sensorium 2023, benchmark notebook."""

PUBLISHED = {
    "factorized": BASELINES
    | {
        "model.channels": (32, 64, 128),
        "model.input_spatial_kernel": 11,
        "model.hidden_spatial_kernel": 5,
        "model.input_temporal_kernel": 11,
        "model.hidden_temporal_kernel": 5,
        "model.norm_momentum": 0.7,
        "model.spatial_smoothness": 10.0,
        "model.temporal_smoothness": 0.01,
    },
    "gru": BASELINES
    | {
        "model.num_layers": 4,
        "model.features": 8,
        "model.num_rotations": 8,
        "model.input_kernel": 9,
        "model.hidden_kernel": 7,
        "model.coefficient_std": 0.1,
        "model.norm_momentum": 0.9,
        "model.gru_channels": 64,
        "model.gru_input_kernel": 9,
        "model.gru_recurrent_kernel": 9,
        "model.smoothness": 500.0,
        "model.sparsity": 500_000.0,
    },
    "vivit": {
        "model.embedding_dim": 112,
        "model.patch_dropout": 0.1338,
        "model.position_encoding": "learnable",
        "model.spatial_depth": 3,
        "model.spatial_patch_size": 7,
        "model.spatial_patch_stride": 2,
        "model.temporal_depth": 5,
        "model.temporal_patch_size": 25,
        "model.temporal_patch_stride": 1,
        "model.num_heads": 11,
        "model.head_dim": 48,
        "model.attention_dropout": 0.3580,
        "model.ff_dim": 136,
        "model.ff_activation": "gelu",
        "model.ff_dropout": 0.0592,
        "model.drop_path": 0.0505,
        "model.block": "parallel",
        "model.qk_norm": False,
        "model.behavior": "channels",
        "model.readout_behavior": True,
        "model.position_sigma": 1.0,
        "model.weight_spread": 0.0,
        "model.output": "exponential",
        "loader.clip_frames": 140,
        "loader.batch_size": 6,
        "loader.order": "round",
        "normalization.video.center": "mean",
        "normalization.video.scale": "std_minus_mean",
        "normalization.behavior.center": "min",
        "normalization.behavior.scale": "range",
        "normalization.pupil.center": "min",
        "normalization.pupil.scale": "range",
        "normalization.statistics": "recomputed",
        "loss.scale": "sqrt_dataset",
        "loss.count": "training",
        "loss.eps": torch.finfo(torch.float32).eps,
        "loss.eps_in": "everywhere",
        "loss.correlation_weight": 1000.0,
        "optimizer.core_lr": 0.0048,
        "optimizer.core_weight_decay": 0.1789,
        "optimizer.readout_lr": 0.0036,
        "optimizer.readout_weight_decay": 0.3939,
        "optimizer.clip_norm": None,
        "schedule.patience": 5,
        "schedule.plateaus": 3,
        "schedule.resets": True,
        "schedule.factor": 0.3,
        "schedule.rate_patience": None,
        "schedule.collapse_best": 0.05,
        "inference.windows.length": None,
        "epochs": 400,
    },
    "v1fm": {
        "model.clip_frames": 30,
        "model.patch": (2, 2, 2),
        "model.channels": 224,
        "model.depth": 4,
        "model.num_heads": 4,
        "model.window": (8, 7, 7),
        "model.shift": (4, 3, 3),
        "model.mlp_channels": 488,
        "model.block_norm": "none",
        "model.dropout": 0.0,
        "model.drop_path": 0.0,
        "model.levels": (2, 4, 8, 16),
        "model.fusion": "mean",
        "model.position_hidden": 32,
        "model.init_sigma": 0.2,
        "model.weight_spread": 0.0,
        "model.shifter_hidden": 16,
        "model.output": "elu_plus_one",
        "loader.clip_frames": 30,
        "loader.batch_size": 32,
        "loader.order": "cycle",
        "normalization.video.center": "mean",
        "normalization.video.scale": "std",
        "loss.scale": "none",
        "loss.eps_in": "everywhere",
        "loss.correlation_weight": 0.0,
        "optimizer.core_lr": 1e-3,
        "optimizer.core_weight_decay": 0.05,
        "optimizer.readout_lr": None,
        "schedule.warmup_steps": 600,
        "schedule.warmup_factor": 1 / 3,
        "schedule.constant_epochs": 80,
        "schedule.final_factor": 1e-3,
        "inference.windows.length": 30,
        "inference.windows.lead": 15,
        "inference.windows.hop": 15,
        "inference.windows.start": 35,
        "epochs": 180,
        "seed": 42,
    },
    "dwiseneuro": {
        "model.canvas": (64, 64),
        "model.stem_channels": 64,
        "model.channels": (64, 64, 64, 128, 128, 128, 256, 256, 256),
        "model.strides": (2, 1, 1, 1, 2, 1, 1, 2, 1),
        "model.expansion": 7,
        "model.spatial_kernel": 3,
        "model.temporal_kernel": 5,
        "model.squeeze": 32,
        "model.drop_path": 0.1,
        "model.cortex_channels": (1024, 2048, 4096),
        "model.groups": 2,
        "model.cortex_drop_path": 0.1,
        "model.readout_dropout": 0.4,
        "model.softplus_beta": 0.07,
        "loader.clip_frames": 16,
        "loader.frame_step": 2,
        "loader.batch_size": 32,
        "loader.order": "mixed",
        "loader.clips_per_session": 7200,
        "split.num_folds": 7,
        "normalization.video.scale": "none",
        "normalization.behavior.scale": "none",
        "normalization.pupil.scale": "none",
        "normalization.responses": "raw",
        "normalization.relu": True,
        "loss.scale": "mean_over_clips",
        "optimizer.core_lr": 2.4e-3,
        "optimizer.core_weight_decay": 0.05,
        "optimizer.ema_decay": 0.999,
        "schedule.warmup_epochs": 3,
        "schedule.final_factor": 0.01,
        "cutmix.probability": 0.5,
        "inference.windows.length": 16,
        "inference.windows.frame_step": 2,
        "epochs": 21,
    },
}
"""Papers and released code: arXiv:2407.09100, tables 3 and 5 and appendix; starter kit; ViV1T; Dynamic-VFM;
lRomul/sensorium."""

FAMILIES = tuple(PUBLISHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_recipes_have_the_published_settings(family):
    values = flatten(recipe(family))
    wrong = {
        name: (values[name], wanted) for name, wanted in PUBLISHED[family].items() if values[name] != wanted
    }
    assert not wrong


def test_every_published_family_is_in_the_table():
    assert {"factorized", "gru", "vivit", "v1fm", "dwiseneuro"} <= set(FAMILIES) <= set(MODELS)


def test_the_second_stage_differs_from_the_first_in_width_and_teacher_only():
    first, second = flatten(dwiseneuro(stage=1)), flatten(dwiseneuro(stage=2))
    changed = {name: second[name] for name in first if second[name] != first[name]}
    assert changed.pop("model.expansion") == 6
    # 36 % as in the code, not the README's 0.36 %.
    assert second["distillation.ratio"] == 0.36
    assert set(changed) <= {"distillation.ratio"}


def test_the_31_members_are_the_published_sets_of_levels():
    members = v1fm_members()
    subsets = set(chain.from_iterable(combinations((2, 4, 8, 16), size) for size in range(1, 5)))
    drawn = [(member.model.levels, member.model.fusion) for member in members]
    assert len(members) == len(set(drawn)) == 31
    assert {levels for levels, fusion in drawn if fusion == "adaptive"} == subsets
    assert {levels for levels, fusion in drawn if fusion == "mean"} == subsets | {()}


def test_the_31_members_differ_in_their_levels_and_fusion_only():
    plain = flatten(recipe("v1fm"))
    for member in v1fm_members():
        changed = {name for name, value in flatten(member).items() if value != plain[name]}
        assert changed <= {"model.levels", "model.fusion"}


@pytest.mark.parametrize("family", [*FAMILIES, "second stage"])
def test_demo_recipes_keep_the_family_and_what_is_not_listed(family):
    full = dwiseneuro(stage=2) if family == "second stage" else recipe(family)
    small = demo(full)
    assert small.family == full.family
    assert type(small.schedule) is type(full.schedule)
    before, after = flatten(full), flatten(small)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, value in DEMO[full.family].items() if before[name] != value}
    # What makes a system itself is not a matter of scale.
    assert not {name for name in changed if name.startswith(("loss.", "distillation."))}
    assert from_plain(to_plain(small)) == small


@pytest.mark.parametrize("scale", ["demo", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_demo_recipes_build_encoders_for_frames_of_demo_and_of_real_recordings(family, scale, recordings):
    spec = recipe(family, scale="demo")
    frame_shape = SimulationConfig.for_scale(scale).frame_shape
    material = Material.prepare(
        recordings, with_values(spec, {"split.num_folds": 2}), device=torch.device("cpu")
    )
    encoder = spec.model.build(material.session_specs(), frame_shape)
    session = recordings[0].session
    frames = spec.loader.clip_frames
    signals = torch.zeros(1, 2, frames)
    encoder.eval()
    with torch.inference_mode():
        predicted = encoder(torch.zeros(1, 1, frames, *frame_shape), signals, signals, session=session)
    assert predicted.shape == (1, len(recordings[0].neurons.ids), frames - spec.model.warmup_frames)


def test_an_unknown_family_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean vivit"):
        recipe("vivitt", scale="demo")


@pytest.fixture(scope="module")
def demo_world(tmp_path_factory):
    """Demo recordings, their oracle trials, and the score of the true rates on these."""
    folder = tmp_path_factory.mktemp("demo")
    raw = folder / "raw"
    recordings = open_recordings(simulate(raw, SimulationConfig.for_scale("demo")), cache=folder / "cache")
    oracle = select_trials(recordings, [Tier.ORACLE])
    return recordings, oracle, known_ceiling(recordings, open_truths(raw, recordings), oracle).single_trial


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("family", "values"), [("factorized", {}), ("gru", {}), ("v1fm", {"schedule.constant_epochs": 1})]
)
def test_demo_recipes_learn_in_two_epochs(demo_world, family, values):
    """Measured: 60, 65 and 61 % of the ceiling on the hold-out fold; whole recipes in docs/results.md."""
    recordings, oracle, ceiling = demo_world
    spec = with_values(recipe(family, scale="demo"), {"epochs": 2} | values)
    material = Material.prepare(recordings, spec, device=torch.device("cpu"))
    encoder = material.build_encoder()
    fit(encoder, material, spec, on_epoch=lambda _: True)
    score = score_trials(
        encoder,
        recordings,
        oracle,
        normalizations=material.normalizations,
        inference=spec.inference,
        compute=spec.compute,
    ).single_trial
    assert 0.7 < ceiling < 0.9
    assert score > 0.4 * ceiling
