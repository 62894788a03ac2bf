"""What every search space must satisfy."""

import math
import pickle
from functools import cache

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from data.sampling import count_steps
from hpo.feasibility import Feasibility
from hpo.space import Ask, Bounds, plain, plan_space
from hpo.spaces import SPACES
from models.cores import hermite
from models.registry import MODELS
from training.names import flatten, with_values
from training.recipes import recipe

SCALES = ("full", "demo")
EVERY = [(name, scale) for name in sorted(SPACES) for scale in SCALES]
NUM_SAMPLED = {"full": 500, "demo": 100}
FRAMES = {"full": (36, 64), "demo": (16, 16)}
"""Rows and columns of the data set's videos and of the demo recordings'."""

# Turishcheva et al. 2024, arXiv:2407.09100, Table 3: "uniform, min, max, step" and the final value.
TABLE_3 = {
    "model.embedding_dim": (8, 512, 8, 112),
    "optimizer.core_lr": (0.0001, 0.01, None, 0.0048),
    "model.patch_dropout": (0, 0.5, None, 0.1338),
    "model.drop_path": (0, 0.5, None, 0.0505),
    "optimizer.core_weight_decay": (0, 1, None, 0.1789),
    "loader.batch_size": (1, 64, 1, 6),
    "model.spatial_depth": (1, 8, 1, 3),
    "model.spatial_patch_size": (3, 16, 1, 7),
    "model.temporal_depth": (1, 8, 1, 5),
    "model.temporal_patch_size": (1, 50, 1, 25),
    "model.num_heads": (1, 16, 1, 11),
    "model.head_dim": (8, 512, 8, 48),
    "model.attention_dropout": (0, 0.5, None, 0.3580),
    "model.ff_dim": (8, 512, 8, 136),
    "model.ff_dropout": (0, 0.5, None, 0.0592),
}
TABLE_3_CHOICES = {
    "model.position_encoding": ({"none", "learnable", "sinusoidal"}, "learnable"),
    "model.ff_activation": ({"tanh", "sigmoid", "elu", "gelu", "swiglu"}, "gelu"),
}
TABLE_3_STRIDES = {
    "model.spatial_patch_stride": ("model.spatial_patch_size", 2),
    "model.temporal_patch_stride": ("model.temporal_patch_size", 1),
}
# Released code of ViV1T: the group of readouts and shifters; Table 4 ranks both learning rates.
READOUTS = {
    "optimizer.readout_lr": (0.0001, 0.01, None, 0.0036),
    "optimizer.readout_weight_decay": (0, 1, None, 0.3939),
}
# A.2.1 of the same paper, "Parameter Search".
V1FM_CHOICES = {
    "optimizer.core_lr": ({1e-4, 5e-4, 1e-3, 2e-3, 5e-3}, 1e-3),
    "model.channels": ({32, 64, 128, 160, 224}, 224),
}
PUBLISHED = {
    "v1fm": {"optimizer.core_lr": 1e-3, "model.channels": 224, "model.levels": "2,4,8,16"},
    "dwiseneuro": {
        "model.softplus_beta": 0.07,
        "model.readout_dropout": 0.4,
        "model.drop_path": 0.1,
        "optimizer.core_lr": 2.4e-3,
        "loader.batch_size": 32,
        "model.expansion": 7,
        "model.channels": "64,64,64,128,128,128,256,256,256",
    },
    "factorized": {
        "model.input_spatial_kernel": 11,
        "model.hidden_spatial_kernel": 5,
        "model.input_temporal_kernel": 11,
        "model.hidden_temporal_kernel": 5,
        "model.channels": "32,64,128",
        "model.spatial_smoothness": 10.0,
        "model.temporal_smoothness": 0.01,
        "optimizer.core_lr": 0.005,
        "loader.batch_size": 8,
    },
    "gru": {
        "model.input_kernel": 9,
        "model.hidden_kernel": 7,
        "model.gru_input_kernel": 9,
        "model.gru_recurrent_kernel": 9,
        "model.features": 8,
        "model.gru_channels": 64,
        "model.smoothness": 500.0,
        "model.sparsity": 500_000.0,
        "optimizer.core_lr": 0.005,
        "loader.batch_size": 8,
    },
}
"""The published values as the papers and released codes give them, beside ViViT's in Table 3."""


def planned(name, scale, bounds=None):
    return plan_space(name, SPACES[name][scale], recipe(name, scale=scale), bounds or Bounds())


@cache
def sampled(name, scale):
    """Return the answers, and the ranges they came from, of many random points."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    points = []
    for _ in range(NUM_SAMPLED[scale]):
        trial = study.ask()
        ask = Ask(trial, base=flatten(recipe(name, scale=scale)))
        SPACES[name][scale](ask)
        points.append((dict(ask.values), dict(trial.distributions)))
    return points


def test_every_model_family_has_a_space_at_both_scales():
    assert SPACES.keys() == MODELS.keys()
    assert all(space.keys() == set(SCALES) for space in SPACES.values())


def test_the_vivit_space_is_table_3_to_the_letter():
    for values, ranges in sampled("vivit", "full"):
        for name, (low, high, step, _) in (TABLE_3 | READOUTS).items():
            found = ranges[name]
            assert (found.low, found.high, found.step, found.log) == (low, high, step, False), name
        for name, (choices, _) in TABLE_3_CHOICES.items():
            assert set(ranges[name].choices) == choices
        for name, (patch, _) in TABLE_3_STRIDES.items():
            found = ranges[name]
            assert (found.low, found.high, found.step, found.log) == (1, values[patch], 1, False), name
        assert (
            ranges.keys()
            == TABLE_3.keys() | TABLE_3_CHOICES.keys() | TABLE_3_STRIDES.keys() | READOUTS.keys()
        )


def test_table_3_has_19_hyperparameters():
    assert len(TABLE_3) + len(TABLE_3_CHOICES) + len(TABLE_3_STRIDES) == 19


def test_the_first_run_of_the_vivit_space_has_the_final_values_of_table_3():
    tables = (TABLE_3, READOUTS, TABLE_3_CHOICES, TABLE_3_STRIDES)
    final = {name: row[-1] for table in tables for name, row in table.items()}
    assert planned("vivit", "full").published == final


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_first_run_of_every_other_space_has_the_published_values(name):
    published = planned(name, "full").published
    assert published.items() >= PUBLISHED[name].items()


def test_the_v1fm_space_is_the_teams_hand_search_with_the_ensembles_readouts():
    for values, ranges in sampled("v1fm", "full"):
        for name, (choices, _) in V1FM_CHOICES.items():
            assert set(ranges[name].choices) == choices
        assert ("model.fusion" in values) == (values["model.levels"] != "()")
    # 15 subsets of four levels, and none: with two fusions the 31 members.
    levels = ranges["model.levels"].choices
    assert len(set(levels)) == len(levels) == 16


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_the_recipe_is_the_first_run_of_its_space(name, scale):
    plan = planned(name, scale)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(plan.published))
    trial = study.ask()
    # Optuna warns, which is an error here, when an enqueued value lies outside.
    spec = plan.space.spec(trial)
    assert trial.params.items() >= plan.published.items()
    assert spec == recipe(name, scale=scale)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_the_demo_lies_within_the_full_space(name):
    # Widths are multiples of the recipe's own at either scale.
    multiples = {"model.channels"} if name in ("factorized", "dwiseneuro") else set()
    names = {key for _, ranges in sampled(name, "full") for key in ranges}
    widest = widest_ranges(name)
    for _, ranges in sampled(name, "demo"):
        assert ranges.keys() <= names
        for key in ranges.keys() - multiples:
            demo, full = ranges[key], widest[key]
            if isinstance(demo, CategoricalDistribution):
                assert set(demo.choices) <= set(full.choices), key
                continue
            assert full.low <= demo.low <= demo.high <= full.high, key
            assert (full.step, full.log) == (demo.step, demo.log), key
            if full.step:
                assert (demo.low - full.low) % full.step == pytest.approx(0.0), key


def widest_ranges(name):
    """Return each hyperparameter's range; a stride's is that of the largest patch that was drawn."""
    widest = {}
    for _, ranges in sampled(name, "full"):
        for key, found in ranges.items():
            if key not in widest or getattr(found, "high", 0) > getattr(widest[key], "high", 0):
                widest[key] = found
    return widest


@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_corner_of_a_space_is_drawn(name):
    for key, found in widest_ranges(name).items():
        drawn = [values[key] for values, _ in sampled(name, "full") if key in values]
        if isinstance(found, CategoricalDistribution):
            assert set(drawn) == set(found.choices)
        else:
            low, high = (map(math.log, (found.low, found.high))) if found.log else (found.low, found.high)
            shares = [((math.log(x) if found.log else x) - low) / (high - low) for x in drawn]
            assert min(shares) < 0.1, key
            assert max(shares) > 0.85, key


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_a_space_pickles(name, scale):
    space = planned(name, scale).space
    again = pickle.loads(pickle.dumps(space))
    assert again.suggest is space.suggest
    assert again.base == space.base


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_point_can_be_built_or_is_infeasible_for_a_reason_that_holds(name, scale, monkeypatch):
    # The GRU's fixed bases take most of the time of building one.
    monkeypatch.setattr(hermite, "rotated_bases", cache(hermite.rotated_bases))
    base = recipe(name, scale=scale)
    # Frames smaller than some patches and kernels, so that both answers come up.
    small = (12, 20)
    reasons = {}
    for values, _ in sampled(name, scale):
        try:
            spec = with_values(base, values)
        except ValueError:
            assert is_impossible(name, values, base)
            continue
        assert count_steps([20, 30], spec.loader) >= 1
        for shape in (FRAMES[scale], small):
            model = without_rates(spec, base)
            if (model, shape) not in reasons:
                reasons[model, shape] = Feasibility(neurons=(("a", 5), ("b", 7)), frame_shape=shape)(spec)
            assert (reasons[model, shape] is not None) == does_not_fit(spec, shape), (values, shape)


def without_rates(spec, base):
    """Return a model's configuration with the base's rates and weights, which change no shape."""
    rates = {key: value for key, value in flatten(base.model).items() if isinstance(value, float)}
    return with_values(spec.model, rates)


def is_impossible(name, values, base):
    """Whether values contradict each other, written down again from the definitions."""
    flat = flatten(base) | values
    if name == "vivit":
        return flat["loader.clip_frames"] < flat["model.temporal_patch_size"]
    if name == "factorized":
        layers = len(flat["model.channels"].split(","))
        lost = flat["model.input_temporal_kernel"] - 1
        lost += (layers - 1) * (flat["model.hidden_temporal_kernel"] - 1)
        return flat["loader.clip_frames"] <= lost
    return False


def does_not_fit(spec, shape):
    """Whether patches or unpadded kernels are larger than the frame, written down again."""
    model, side = spec.model, min(shape)
    if spec.family == "vivit":
        return model.spatial_patch_size > side
    if spec.family == "gru":
        return model.input_kernel > side
    if spec.family == "factorized":
        hidden = len(model.channels) - 1
        lost = model.input_spatial_kernel - 1 + hidden * (model.hidden_spatial_kernel - 1)
        return lost >= side
    if spec.family == "dwiseneuro":
        return model.canvas is not None and (shape[0] > model.canvas[0] or shape[1] > model.canvas[1])
    return False


def test_a_memory_that_one_clip_exceeds_makes_a_point_infeasible_and_says_how_much():
    spec = recipe("vivit", scale="demo")
    sessions = (("a", 50),)
    needed = Feasibility(neurons=sessions, frame_shape=(18, 32)).cost(spec, clips=1).peak_bytes
    enough, too_little = (
        Feasibility(neurons=sessions, frame_shape=(18, 32), memory_bytes=memory)
        for memory in (needed, needed - 1)
    )
    assert enough(spec) is None
    assert "one clip at a time needs" in too_little(spec)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_a_pinned_value_is_in_every_point_and_is_not_asked_for(name):
    full = planned(name, "full")
    for key, value in full.published.items():
        plan = planned(name, "full", Bounds(pinned={key: str(value)}))
        assert key not in plan.published
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        spec = plan.space.spec(trial, Bounds(pinned={key: str(value)}))
        assert key not in trial.params
        assert plain(flatten(spec)[key]) == value
