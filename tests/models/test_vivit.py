import dataclasses
import math

import numpy as np
import pytest
import torch

from models.cores.vivit import ViViTConfig
from models.encoder import SessionSpec
from models.position_encodings import PositionEncoding, sinusoidal_encoding

NEW_MICE = (7863, 7908, 8202, 7939, 8122)
OLD_MICE = (7440, 7928, 8285, 7671, 7495)
# Smallest that still has several patches, steps and heads; dropout off.
TINY = {
    "embedding_dim": 8,
    "patch_dropout": 0.0,
    "spatial_depth": 1,
    "spatial_patch_size": 3,
    "temporal_depth": 1,
    "temporal_patch_size": 4,
    "num_heads": 2,
    "head_dim": 4,
    "attention_dropout": 0.0,
    "ff_dim": 6,
    "ff_dropout": 0.0,
    "drop_path": 0.0,
    "max_frames": 20,
}


def sessions(*num_neurons):
    return [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=n,
            coordinates_um=torch.from_numpy(np.random.default_rng([1, index]).normal(size=(n, 3))).float(),
            mean_response=torch.ones(n),
        )
        for index, n in enumerate(num_neurons)
    ]


def build(num_neurons=(5,), frame_shape=(8, 11), **changes):
    torch.manual_seed(0)
    return ViViTConfig(**(TINY | changes)).build(sessions(*num_neurons), frame_shape)


def clip(num_frames, *, frame_shape=(8, 11), num_clips=2):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(num_clips, 1, num_frames, *frame_shape, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def published(num_neurons, **changes):
    with torch.device("meta"):
        return ViViTConfig(**changes).build(sessions(*num_neurons), (36, 64))


def test_the_published_model_has_the_published_number_of_parameters():
    encoder = published(NEW_MICE + OLD_MICE)
    core = encoder.core
    assert count(core.tokenizer.norm) == 12_250
    assert count(core.tokenizer.projection) == 686_112
    assert count(core.tokenizer.output_norm) == 224
    assert core.position_encoding.spatial.numel() == 48_720
    assert core.position_encoding.temporal.numel() == 30_912
    blocks = [*core.spatial_transformer.blocks, *core.temporal_transformer.blocks]
    assert [count(block) for block in blocks] == [267_232] * 8
    assert count(core) == 2_916_074
    assert [count(readout) for readout in encoder.readouts.values()] == [
        *(933_563, 938_828, 973_226, 942_455, 963_866),
        *(884_072, 941_168, 982_937, 911_099, 890_507),
    ]
    assert [count(shifter) for shifter in encoder.shifters.values()] == [57] * 10
    assert count(encoder) == 12_278_365
    assert count(published(NEW_MICE)) == 7_668_297


def test_the_variants_have_their_numbers_of_parameters():
    assert count(published(NEW_MICE, block="sequential").core) == 2_920_746
    assert count(published(NEW_MICE, block="sequential")) == 7_672_969
    assert count(published(NEW_MICE + OLD_MICE, block="sequential")) == 12_283_037
    assert count(published(NEW_MICE, qk_norm=True).core) == 2_932_970


def test_the_published_grid_is_15_by_29_patches_and_116_steps_of_140_frames():
    assert published((5,)).core.out_shape == (15, 29)
    assert ViViTConfig().grid.num_steps(140) == 116
    assert ViViTConfig().warmup_frames == 24


def test_the_sinusoidal_encoding_is_its_closed_formula():
    encoding = sinusoidal_encoding(9, 7)
    for position in range(9):
        for feature in range(7):
            angle = position / 10_000 ** ((feature - feature % 2) / 7)
            expected = math.cos(angle) if feature % 2 else math.sin(angle)
            assert encoding[position, feature].item() == pytest.approx(expected, abs=1e-6)


def test_a_sinusoidal_code_of_step_and_of_patch_are_added_and_not_trained():
    encoding = PositionEncoding("sinusoidal", num_steps=6, num_patches=5, embedding_dim=4)
    added = encoding(torch.zeros(2, 3, 5, 4))
    code = sinusoidal_encoding(6, 4)
    for step in range(3):
        for patch in range(5):
            torch.testing.assert_close(added[1, step, patch], code[step] + code[patch])
    assert not list(encoding.parameters())
    assert not encoding.state_dict()


def test_learnable_codes_start_standard_normal_and_none_adds_nothing():
    torch.manual_seed(0)
    encoding = PositionEncoding("learnable", num_steps=100, num_patches=90, embedding_dim=50)
    added = encoding(torch.zeros(1, 7, 90, 50))
    torch.testing.assert_close(added[0, 3, 8], encoding.temporal[3] + encoding.spatial[8])
    for codes in (encoding.spatial, encoding.temporal):
        assert codes.std().item() == pytest.approx(1, abs=0.05)
    tokens = torch.randn(1, 7, 90, 50)
    assert PositionEncoding("none", num_steps=9, num_patches=90, embedding_dim=50)(tokens) is tokens


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("num_frames", [4, 5, 9, 10, 13])
def test_every_frame_after_the_warmup_is_predicted_by_the_first_step_that_ends_at_it_or_later(
    stride, num_frames
):
    core = build(temporal_patch_stride=stride).core
    ends = [end for end in range(num_frames - 1, -1, -stride) if end - 3 >= 0][::-1]
    expected = [next(k for k, end in enumerate(ends) if end >= frame) for frame in range(3, num_frames)]
    assert core._step_of_frame(num_frames).tolist() == expected
    assert all(
        ends[k] - 3 <= frame <= ends[k] for k, frame in zip(expected, range(3, num_frames), strict=True)
    )
    assert core(*clip(num_frames)).shape == (2, 8, num_frames - 3, 3, 5)


def test_with_a_temporal_stride_frames_of_one_step_share_its_features():
    core = build(temporal_patch_stride=3).core.eval()
    features = core(*clip(11))
    # Steps end at frames 4, 7 and 10: predicted frames 3-4, 5-7 and 8-10.
    for frames in ([0, 1], [2, 3, 4], [5, 6, 7]):
        for frame in frames:
            torch.testing.assert_close(features[:, :, frame], features[:, :, frames[0]])
    assert not torch.allclose(features[:, :, 1], features[:, :, 2])


def test_the_first_frames_of_a_clip_are_dropped_where_they_fill_no_step():
    core = build(temporal_patch_stride=3, position_encoding="none").core.eval()
    video, behavior, pupil = clip(12)
    torch.testing.assert_close(
        core(video, behavior, pupil)[:, :, -7:], core(video[:, :, 2:], behavior[..., 2:], pupil[..., 2:])
    )


def test_behavior_reaches_the_core_only_when_asked_to():
    video, behavior, pupil = clip(9)
    for mode, changes in (("channels", True), ("none", False)):
        core = build(behavior=mode).core.eval()
        same = torch.allclose(core(video, behavior, pupil), core(video, behavior + 1, pupil - 1))
        assert same is not changes


def test_the_readouts_behavior_path_adds_its_code_to_every_neurons_features():
    encoder = build().eval()
    readout = encoder.readouts["mouse0"]
    with torch.no_grad():
        readout.weights.normal_()
    features = torch.randn(2, 8, 3, 4, 5)
    behavior, pupil = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    predicted = readout(features, behavior=behavior, pupil=pupil, shift=None)
    code = readout.behavior_code(torch.cat([behavior, pupil], dim=1).transpose(1, 2))
    # Added to the features at every pixel, it is added to whatever is sampled between them.
    with torch.no_grad():
        for parameter in readout.behavior_code[3].parameters():
            parameter.zero_()
    moved = features + code.transpose(1, 2)[..., None, None]
    torch.testing.assert_close(
        readout(moved, behavior=behavior, pupil=pupil, shift=None), predicted, rtol=1e-4, atol=1e-4
    )


def test_predictions_are_rates_and_every_parameter_gets_a_gradient():
    encoder = build(num_neurons=(5, 4))
    sum(encoder(*clip(9), session=session).sum() for session in encoder.sessions).backward()
    assert (encoder(*clip(9), session="mouse1") > 0).all()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def table_3_point(rng):
    """A random point of the search space of the paper's Table 3, small enough to run."""
    spatial_patch_size = int(rng.integers(3, 17))
    temporal_patch_size = int(rng.integers(1, 51))
    return {
        "embedding_dim": 8 * int(rng.integers(1, 5)),
        "patch_dropout": rng.uniform(0, 0.5),
        "drop_path": rng.uniform(0, 0.5),
        "position_encoding": str(rng.choice(["none", "learnable", "sinusoidal"])),
        "spatial_depth": int(rng.integers(1, 4)),
        "spatial_patch_size": spatial_patch_size,
        "spatial_patch_stride": int(rng.integers(1, spatial_patch_size + 1)),
        "temporal_depth": int(rng.integers(1, 4)),
        "temporal_patch_size": temporal_patch_size,
        "temporal_patch_stride": int(rng.integers(1, temporal_patch_size + 1)),
        "num_heads": int(rng.integers(1, 17)),
        "head_dim": 8 * int(rng.integers(1, 3)),
        "attention_dropout": rng.uniform(0, 0.5),
        "ff_dim": 8 * int(rng.integers(1, 5)),
        "ff_activation": str(rng.choice(["tanh", "sigmoid", "elu", "gelu", "swiglu"])),
        "ff_dropout": rng.uniform(0, 0.5),
    }


@pytest.mark.parametrize("seed", range(15))
def test_points_of_the_published_search_space_build_and_run(seed):
    rng = np.random.default_rng([7, seed])
    point = table_3_point(rng) | {
        "max_frames": 60,
        "block": str(rng.choice(["parallel", "sequential"])),
        "qk_norm": bool(rng.integers(2)),
        "checkpointing": bool(rng.integers(2)),
    }
    print(point)
    encoder = ViViTConfig(**point).build(sessions(3), (16, 19))
    predicted = encoder(*clip(54, frame_shape=(16, 19), num_clips=1), session="mouse0")
    assert predicted.shape == (1, 3, 54 - point["temporal_patch_size"] + 1)
    predicted.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_patch_stride": 9}, "spatial_patch_stride is 9, but must be at most spatial_patch_size, 7"),
        (
            {"temporal_patch_stride": 26},
            "temporal_patch_stride is 26, but must be at most temporal_patch_size, 25",
        ),
        ({"max_frames": 24}, "temporal_patch_size is 25, but must be at most max_frames, 24"),
        ({"num_heads": 0}, "num_heads is 0, but must be at least 1"),
        ({"drop_path": 1.0}, "drop_path is 1.0, but must be at least 0 and less than 1"),
        ({"ff_dropout": -0.1}, "ff_dropout is -0.1, but must be at least 0 and less than 1"),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        ViViTConfig(**changes)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("ff_activation", "relu", "tanh, sigmoid, elu, gelu, swiglu"),
        ("position_encoding", "rope", "none, learnable, sinusoidal"),
        ("block", "both", "parallel, sequential"),
        ("behavior", "tokens", "none, channels"),
        ("output", "relu", "elu_plus_one, exponential, softplus, learnable_softplus"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(name, value, choices):
    config = ViViTConfig()
    # The tests' type checker would refuse the wrong string before the config can.
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}', but must be one of {choices}"):
        config.__post_init__()


def test_a_frame_smaller_than_a_patch_and_clips_too_short_or_long_are_refused():
    with pytest.raises(ValueError, match="spatial_patch_size is 3, but must be at most 2"):
        build(frame_shape=(2, 9))
    core = build().core
    with pytest.raises(
        ValueError, match="a clip has 3 frames, but must have at least temporal_patch_size, 4"
    ):
        core(*clip(3))
    with pytest.raises(ValueError, match="a clip has 21 frames, but must have at most max_frames, 20"):
        core(*clip(21))


def test_a_config_is_frozen_and_equal_to_its_copy():
    assert dataclasses.replace(ViViTConfig(), embedding_dim=112) == ViViTConfig()
    assert hash(ViViTConfig()) == hash(ViViTConfig(ff_dim=136))
