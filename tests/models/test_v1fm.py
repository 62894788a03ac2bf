import dataclasses
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.attention import biased_attention
from models.cores.swin3d import GatedConvMLP, SwinConfig, SwinCore, WindowAttention
from models.cores.v1fm import V1FMConfig
from models.depthwise3d import gated_depthwise3d
from models.encoder import SessionSpec
from models.windows3d import OTHER_REGION_BIAS, WindowLayout, axis_windows, relative_position_index

NEW_MICE = (7863, 7908, 8202, 7939, 8122)
OLD_MICE = (7440, 7928, 8285, 7671, 7495)
TINY = {
    "clip_frames": 8,
    "channels": 8,
    "depth": 2,
    "num_heads": 2,
    "window": (3, 4, 3),
    "shift": (1, 2, 1),
    "mlp_channels": 6,
    "levels": (2, 4),
}


def sessions(*num_neurons):
    rng = np.random.default_rng(4)
    return [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=n,
            coordinates_um=torch.from_numpy(rng.normal(size=(n, 3))).float(),
            mean_response=torch.ones(n),
        )
        for index, n in enumerate(num_neurons)
    ]


def build(num_neurons=(5,), frame_shape=(9, 14), **changes):
    torch.manual_seed(0)
    return V1FMConfig(**(TINY | changes)).build(sessions(*num_neurons), frame_shape)


def clip(num_frames=8, *, frame_shape=(9, 14), num_clips=2):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(num_clips, 1, num_frames, *frame_shape, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def swin_config(**changes):
    return dataclasses.replace(V1FMConfig(**TINY).core, **changes)


def dense_attention(attention, tokens, *, window, shift):
    """All padded tokens at once; window, region and offset of each pair are worked out token by token."""
    num_clips, *grid, channels = tokens.shape
    padded = [-(-size // side) * side for size, side in zip(grid, window, strict=True)]
    shift = [0 if p == side else s for p, side, s in zip(padded, window, shift, strict=True)]
    everywhere = torch.zeros(num_clips, *padded, channels, dtype=tokens.dtype)
    everywhere[:, : grid[0], : grid[1], : grid[2]] = tokens
    rows = everywhere.reshape(num_clips, -1, channels)
    window_of, region_of, place_of = [], [], []
    for token in product(*(range(size) for size in padded)):
        rolled = [(x - s) % p for x, s, p in zip(token, shift, padded, strict=True)]
        window_of.append([x // side for x, side in zip(rolled, window, strict=True)])
        place_of.append([x % side for x, side in zip(rolled, window, strict=True)])
        # Tokens that the roll carried from the start of an axis to its end.
        region_of.append([x < s for x, s in zip(token, shift, strict=True)])
    window_of, region_of, place_of = map(torch.tensor, (window_of, region_of, place_of))
    same_window = (window_of[:, None] == window_of[None]).all(dim=-1)
    same_region = (region_of[:, None] == region_of[None]).all(dim=-1)
    table = attention.position_bias.reshape(*(2 * side - 1 for side in window), -1)
    offsets = place_of[:, None] - place_of[None] + torch.tensor(window) - 1
    # Offsets of tokens in different windows are meaningless, but index the table and are masked.
    bias = table[tuple(offsets.unbind(dim=-1))].movedim(-1, 0)
    bias = (bias + torch.where(same_region, 0.0, OTHER_REGION_BIAS)).masked_fill(~same_window, -torch.inf)
    query, key, value = (
        part.reshape(num_clips, len(rows[0]), attention.num_heads, -1).transpose(1, 2)
        for part in attention.qkv(rows).chunk(3, dim=-1)
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
    mixed = attention.output((weights @ value).transpose(1, 2).reshape(rows.shape))
    return mixed.reshape(num_clips, *padded, channels)[:, : grid[0], : grid[1], : grid[2]]


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((4, 5, 7), (3, 4, 3), (1, 2, 1)),  # padding on all axes
        ((3, 4, 5), (2, 3, 4), (1, 1, 3)),  # padding that straddles two windows
        ((4, 4, 3), (2, 4, 3), (0, 0, 0)),  # none
        ((2, 3, 2), (4, 5, 7), (2, 2, 3)),  # a grid smaller than a window
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_window_attention_is_dense_attention_masked_by_window_and_region(grid, window, shift, grad):
    torch.manual_seed(1)
    config = swin_config(window=window, shift=shift)
    attention = WindowAttention(config).double()
    torch.nn.init.normal_(attention.position_bias)
    torch.nn.init.normal_(attention.qkv.bias)
    tokens = torch.randn(2, *grid, config.channels, dtype=torch.double, requires_grad=True)
    layout = WindowLayout(grid, window=window, shift=shift)
    parameters = [tokens, *attention.parameters()]
    with torch.set_grad_enabled(grad):
        mixed = attention(tokens, layout)
    expected = dense_attention(attention, tokens, window=window, shift=shift)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-10)
    if grad:
        direction = torch.randn_like(mixed)
        got = torch.autograd.grad(mixed, parameters, direction)
        wanted = torch.autograd.grad(expected, parameters, direction)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_the_published_grid_has_thirty_windows_of_eight_kinds():
    layout = WindowLayout((15, 18, 32), window=(8, 7, 7), shift=(4, 3, 3))
    assert sum(group.num_windows for group in layout.groups) == 30
    assert len(layout.groups) == 8
    assert sum(layout.sizes) == 15 * 18 * 32
    assert torch.equal(layout.order[layout.places], torch.arange(15 * 18 * 32))


def test_regions_are_those_of_the_swin_transformer():
    windows = axis_windows(18, window=7, shift=3)
    # 21 padded places: the last window holds 4 before the seam of the roll and 3 behind it.
    assert [w.regions for w in windows] == [(0,) * 7, (0,) * 7, (0, 0, 0, 0, 1, 1, 1)]
    assert windows[2].tokens == (17, 0, 1, 2)
    assert windows[2].padding == (1, 2, 3)


def test_relative_positions_are_counted_from_most_negative_along_time_rows_and_columns():
    index = relative_position_index((8, 7, 7))
    query, key = (3, 5, 1), (6, 2, 6)
    flat = [t * 49 + h * 7 + w for t, h, w in (query, key)]
    assert index[flat[0], flat[1]] == (3 - 6 + 7) * 169 + (5 - 2 + 6) * 13 + (1 - 6 + 6)
    assert index.max() == 2535 - 1


def test_attention_in_many_chunks_is_attention(monkeypatch):
    monkeypatch.setattr("models.attention.CHUNK_BYTES", 1)
    torch.manual_seed(2)
    inputs = [torch.randn(3, 2, 4, 5, dtype=torch.double, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v, b: biased_attention(q, k, v, bias=b), (*inputs, bias))


@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 8), (1, 1, 2, 3, 4), (2, 2, 1, 1, 3)])
def test_gated_depthwise_convolution_and_its_gradients_are_those_of_plain_layers(shape):
    torch.manual_seed(0)
    channels = shape[-1]
    sizes = ((*shape[:-1], 2 * channels), (channels, 1, 3, 3, 3), (channels,))
    inputs = [torch.randn(size, dtype=torch.double, requires_grad=True) for size in sizes]
    features, weight, bias = inputs
    ours = gated_depthwise3d(features, weight, bias)
    gated = features[..., :channels] * functional.silu(features[..., channels:])
    plain = functional.conv3d(gated.movedim(-1, 1), weight, bias, padding=1, groups=channels).movedim(1, -1)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(gated_depthwise3d(features, weight, bias), plain, rtol=0, atol=1e-12)
    direction = torch.randn_like(ours)
    got = torch.autograd.grad(ours, inputs, direction)
    for a, b in zip(got, torch.autograd.grad(plain, inputs, direction), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_mlp_is_its_formula():
    torch.manual_seed(0)
    mlp = GatedConvMLP(4, 6).double()
    tokens = torch.randn(1, 2, 3, 3, 4, dtype=torch.double)
    values, gates = mlp.input(tokens).split(6, dim=-1)
    hidden = mlp.convolution((values * gates * gates.sigmoid()).movedim(-1, 1)).movedim(1, -1)
    expected = mlp.output(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(mlp(tokens), expected, rtol=0, atol=1e-12)


def test_a_patch_is_embedded_by_its_own_pixels_and_behavior_by_its_own_frames():
    core = build(depth=1).core
    video, behavior, pupil = clip()
    tokens = core.patches(video)
    assert tokens.shape == (2, 4, 5, 7, 8)
    patch = torch.zeros(2, 1, 2, 2, 2)
    patch[:, :, :, :1] = video[:, :, 4:6, 8:9, 6:8]  # the ninth row is completed by a row of zeros
    torch.testing.assert_close(
        tokens[:, 2, 4, 3], core.patches.norm(core.patches.projection(patch).flatten(1))
    )
    embedding = core.blocks[0].behavior
    signals = torch.cat([behavior, pupil], dim=1)
    expected = torch.cat([embedding.layers(signals[:, :, frame]) for frame in (4, 5)], dim=1)
    torch.testing.assert_close(embedding(signals)[:, 2, 0, 0], expected)


def test_fifteen_steps_predict_the_last_fifteen_of_thirty_frames():
    assert V1FMConfig().num_steps == 15
    assert V1FMConfig().warmup_frames == 15
    assert V1FMConfig(patch=(3, 2, 2), channels=225, num_heads=5).warmup_frames == 20


def test_clips_of_another_length_are_refused():
    encoder = build()
    with pytest.raises(ValueError, match="the clip has 10 frames, but must have clip_frames, 8"):
        encoder(*clip(10), session="mouse0")


@pytest.mark.parametrize("frame_shape", [(1, 1), (9, 14), (4, 31)])
def test_frames_of_any_size_give_a_rate_per_neuron_and_predicted_frame(frame_shape):
    encoder = build((1, 5), frame_shape)
    for session, num_neurons in (("mouse0", 1), ("mouse1", 5)):
        predicted = encoder(*clip(frame_shape=frame_shape), session=session)
        assert predicted.shape == (2, num_neurons, 4)
        assert (predicted >= 0).all()
        assert predicted.isfinite().all()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = build(checkpointing=checkpointing).eval()  # no position noise
        encoder(*clip(), session="mouse0").sum().backward()
        gradients.append([p.grad for p in encoder.core.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_every_shared_parameter_gets_a_gradient_with_and_without_block_norms():
    for block_norm in ("none", "layer"):
        encoder = build(block_norm=block_norm, fusion="adaptive")
        encoder(*clip(), session="mouse0").square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.core.parameters())


@pytest.mark.parametrize(
    ("fusion", "total_new", "total_all"),
    [("mean", 19_856_430, 36_906_001), ("adaptive", 19_857_110, 36_907_361)],
)
def test_parameter_counts_are_those_of_the_released_code(fusion, total_new, total_all):
    encoder = V1FMConfig(fusion=fusion, unused_levels=True).build(sessions(*NEW_MICE, *OLD_MICE), (36, 64))
    per_mouse = [count(readout) for readout in encoder.readouts.values()]
    mean = [3_452_885, 3_473_046, 3_601_972, 3_486_417, 3_566_852]
    mean += [3_267_762, 3_481_882, 3_638_227, 3_368_597, 3_291_333]
    assert per_mouse == [n + (136 if fusion == "adaptive" else 0) for n in mean]
    assert [count(shifter) for shifter in encoder.shifters.values()] == [354] * 10
    core = encoder.core
    assert count(core) == 2_273_488
    assert count(core.patches) == 2_464
    for block in core.blocks:
        assert (count(block.attention), count(block.mlp), count(block.behavior)) == (211_740, 342_800, 13_216)
    assert count(core) + sum(per_mouse[:5]) + 5 * 354 == total_new
    assert count(encoder) == total_all


def test_the_count_with_unused_levels_does_not_depend_on_the_levels():
    subsets = [s for size in (0, 1, 2, 3, 4) for s in combinations((2, 4, 8, 16), size)]
    assert len(subsets) == 16
    for fusion, extra in (("mean", 0), ("adaptive", 136)):
        for levels in subsets if fusion == "mean" else subsets[1:]:
            readout = build((67,), levels=levels, fusion=fusion, unused_levels=True).readouts["mouse0"]
            pseudo = 67 + 33 + 16 + 8 + 4
            assert count(readout) == 8 * pseudo + 5 * 67 + 162 + 1440 + extra


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_frames": 31}, "clip_frames is 31, but must be a multiple of patch"),
        ({"channels": 225}, "channels is 225, but must be a multiple of num_heads, 4"),
        ({"channels": 225, "num_heads": 5}, "channels is 225, but must be a multiple of patch"),
        ({"shift": (4, 7, 3)}, "shift is .4, 7, 3., but must be less than window"),
        ({"window": (0, 7, 7)}, "window is .0, 7, 7., but must be three numbers of at least 1"),
        ({"levels": (4, 2)}, "levels is .4, 2., but must be ascending"),
        ({"levels": (1, 2)}, "levels is .1, 2., but must be ascending numbers of at least 2"),
        ({"levels": (), "fusion": "adaptive"}, "fusion is 'adaptive', but must be 'mean'"),
        ({"output": "relu"}, "output is 'relu', but must be one of"),
        ({"dropout": 1.0}, "dropout is 1.0, but must be at least 0 and less than 1"),
        ({"init_sigma": 0.0}, "init_sigma is 0.0, but must be positive"),
        ({"depth": 0}, "depth is 0, but must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        V1FMConfig(**changes)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [("fusion", "max", "mean, adaptive"), ("block_norm", "batch", "none, layer")],
)
def test_unknown_choices_are_refused(name, value, choices):
    config = V1FMConfig()
    # The tests' type checker would refuse the wrong string before the config can.
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}', but must be one of {choices}"):
        config.__post_init__()


def test_copies_of_the_core_compute_the_same():
    core = build().core
    assert isinstance(core, SwinCore)
    assert isinstance(V1FMConfig().core, SwinConfig)
    twin = build().core
    twin.load_state_dict(core.state_dict())
    torch.testing.assert_close(twin(*clip()), core(*clip()))
    assert not any("layout" in name for name in core.state_dict())
