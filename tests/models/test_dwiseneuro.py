import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.cores.depthwise import DepthwiseBlock, position_code, sinusoidal_code
from models.cores.dwiseneuro import DwiseNeuroConfig
from models.encoder import SessionSpec
from models.pointwise import pointwise, pointwise_batch_norm
from models.readouts.cortex import Cortex, GroupedReadout, channel_shuffle

NEW_MICE = (7863, 7908, 8202, 7939, 8122)
OLD_MICE = (7440, 7928, 8285, 7671, 7495)
READOUTS = [16_113_336, 16_203_492, 16_805_898, 16_269_060, 16_641_978]
READOUTS += [15_244_560, 16_244_472, 16_978_014, 15_719_928, 15_359_304]
TINY = {
    "canvas": (9, 12),
    "stem_channels": 4,
    "channels": (4, 6, 8),
    "strides": (2, 1, 2),
    "expansion": 3,
    "squeeze": 4,
    "cortex_channels": (12, 16),
    "drop_path": 0.0,
    "cortex_drop_path": 0.0,
    "readout_dropout": 0.0,
}


def sessions(*num_neurons):
    return [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=n,
            coordinates_um=torch.zeros(n, 3),
            mean_response=torch.ones(n),
        )
        for index, n in enumerate(num_neurons)
    ]


def build(num_neurons=(5,), frame_shape=(5, 12), **changes):
    torch.manual_seed(0)
    return DwiseNeuroConfig(**(TINY | changes)).build(sessions(*num_neurons), frame_shape)


def clip(num_frames=4, *, frame_shape=(5, 12), num_clips=2):
    generator = torch.Generator().manual_seed(3)
    return (
        255 * torch.rand(num_clips, 1, num_frames, *frame_shape, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("channels", [64, 128, 256, 5])
def test_position_codes_are_sines_then_cosines_of_time_row_and_column(channels):
    code = position_code((3, 2, 4), channels).numpy()
    dim = {64: 22, 128: 44, 256: 86, 5: 2}[channels]
    for t, h, w in np.ndindex(3, 2, 4):
        values = []
        for position in (t, h, w):
            angles = [position * 10000 ** (-j / dim) for j in range(0, dim, 2)]
            values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(code[t, h, w], values[:channels], atol=1e-5)


def test_codes_of_the_first_position_are_zeros_then_ones():
    np.testing.assert_array_equal(sinusoidal_code(1, 6), [[0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize("training", [True, False])
def test_a_product_with_its_norm_is_a_convolution_then_batch_normalization(training):
    torch.manual_seed(0)
    features = 3 + torch.randn(2, 3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(8, 6, dtype=torch.double, requires_grad=True)
    ours, plain = nn.BatchNorm1d(8).double(), nn.BatchNorm3d(8).double()
    for norm in (ours, plain):
        norm.load_state_dict(
            norm.state_dict() | {"running_mean": torch.arange(8.0), "running_var": torch.full((8,), 2.0)}
        )
        norm.train(training)
    # The covariance is computed in single precision whatever the features are.
    tolerance = {"rtol": 2e-4, "atol": 2e-4} if training else {"rtol": 1e-12, "atol": 1e-12}
    joined = pointwise_batch_norm(features, weight, ours)
    separate = plain(functional.conv3d(features.movedim(-1, 1), weight[:, :, None, None, None])).movedim(
        1, -1
    )
    torch.testing.assert_close(joined, separate, **tolerance)
    direction = torch.randn_like(joined)
    got = torch.autograd.grad(joined, [features, weight, *ours.parameters()], direction)
    wanted = torch.autograd.grad(separate, [features, weight, *plain.parameters()], direction)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 if training else 1e-12)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)


def test_a_product_at_every_position_is_a_matrix_product():
    features, weight, bias = torch.randn(2, 3, 4, 5, 6), torch.randn(8, 6), torch.randn(8)
    torch.testing.assert_close(pointwise(features, weight, bias), features @ weight.T + bias)


def plain_block(block, features):
    """The block in torch's own layers, channels first."""

    def norm(layer, x):
        return functional.batch_norm(
            x,
            None if layer.training else layer.running_mean,
            None if layer.training else layer.running_var,
            layer.weight,
            layer.bias,
            layer.training,
            eps=layer.eps,
        )

    x = features.movedim(-1, 1)
    x = x + position_code(tuple(x.shape[2:]), x.shape[1]).movedim(-1, 0)
    h = functional.silu(norm(block.expand_norm, block.expand(x)))
    h = functional.silu(norm(block.spatial_norm, block.spatial(h)))
    h = functional.silu(norm(block.temporal_norm, block.temporal(h)))
    squeeze, _, excite, _ = block.gate.layers
    mean = h.mean(dim=(2, 3, 4))
    hidden = functional.silu(mean @ squeeze.weight.T + squeeze.bias)
    gates = torch.sigmoid(hidden @ excite.weight.T + excite.bias)
    main = norm(block.project_norm, block.project(h * gates[:, :, None, None, None]))
    size = (x.shape[2], *(-(-side // block.stride) for side in x.shape[3:]))
    shortcut = functional.interpolate(x, size=size, mode="nearest")
    shortcut = torch.stack([shortcut[:, c % x.shape[1]] for c in range(block.out_channels)], dim=1)
    return (main + norm(block.shortcut_norm, shortcut)).movedim(1, -1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (4, 2), (6, 1), (8, 2), (9, 3)])
def test_a_block_is_its_composition_of_plain_layers(out_channels, stride, training):
    torch.manual_seed(0)
    block = DepthwiseBlock(4, out_channels, stride, drop_path=0.0, config=DwiseNeuroConfig(**TINY).core)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    block.train(training)
    features = torch.randn(2, 3, 5, 7, 4)
    expected = plain_block(block, features)  # first, as ours updates the running statistics
    torch.testing.assert_close(block(features), expected, rtol=1e-3, atol=1e-3)


def test_a_shuffle_deals_out_the_channels_of_the_groups_in_turn():
    assert channel_shuffle(torch.arange(6.0), 2).tolist() == [0, 3, 1, 4, 2, 5]


def test_the_cortex_is_its_composition_of_plain_layers():
    torch.manual_seed(0)
    cortex = Cortex((4, 6, 10), groups=2, drop_path=0.0).eval()
    features = torch.randn(2, 3, 4)
    expected = features.transpose(1, 2)
    for layer in cortex:
        for norm in (layer.norm, layer.shortcut_norm):
            nn.init.normal_(norm.weight)
            norm.running_mean.normal_()
        main = functional.silu(layer.norm(layer.mix(expected)))
        width = main.shape[1]
        dealt = [main[:, (width // 2) * (c % 2) + c // 2] for c in range(width)]
        repeated = [expected[:, c % expected.shape[1]] for c in range(width)]
        expected = torch.stack(dealt, dim=1) + layer.shortcut_norm(torch.stack(repeated, dim=1))
    torch.testing.assert_close(cortex(features), expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_neurons", [1, 5, 6])
def test_each_half_of_the_neurons_reads_its_half_of_the_channels(num_neurons):
    readout = GroupedReadout(sessions(num_neurons)[0], 6).eval()
    half = -(-num_neurons // 2)
    features = torch.randn(2, 6, 3)
    weight, bias = readout.weights.weight.detach(), readout.weights.bias.detach()
    expected = torch.zeros(2, num_neurons, 3)
    for n in range(num_neurons):
        channels = features[:, :3] if n < half else features[:, 3:]
        expected[:, n] = (channels * weight[n]).sum(dim=1) + bias[n]
    nothing = torch.zeros(2, 2, 3)
    actual = readout(features[..., None, None], behavior=nothing, pupil=nothing, shift=None)
    torch.testing.assert_close(actual, expected)


def test_dropout_takes_a_channel_from_all_frames_of_a_clip():
    readout = GroupedReadout(sessions(8)[0], 8, dropout=0.5).train()
    nn.init.ones_(readout.weights.bias)
    with torch.no_grad():
        readout.weights.weight.copy_(torch.eye(4).repeat(2, 1)[..., None])
        readout.weights.bias.zero_()
    torch.manual_seed(0)
    nothing = torch.zeros(3, 2, 5)
    kept = readout(torch.ones(3, 8, 5, 1, 1), behavior=nothing, pupil=nothing, shift=None)
    assert (kept == kept[:, :, :1]).all()
    assert set(kept.unique().tolist()) == {0.0, 2.0}


def test_frames_lie_in_the_middle_of_a_zero_canvas_and_signals_fill_it():
    core = build(frame_shape=(5, 11)).core
    video, behavior, pupil = clip(frame_shape=(5, 11))
    planes = core._planes(video, torch.cat([behavior, pupil], dim=1))
    expected = torch.zeros(2, 4, 9, 12)
    expected[:, :, 2:7, 0:11] = video[:, 0]
    assert torch.equal(planes[..., 0], expected)
    for plane, signal in enumerate([behavior[:, 0], behavior[:, 1], pupil[:, 0], pupil[:, 1]], start=1):
        assert torch.equal(planes[..., plane], signal[:, :, None, None].expand(2, 4, 9, 12))


def test_the_published_canvas_has_the_video_in_rows_14_to_49():
    core = build(frame_shape=(36, 64), canvas=(64, 64)).core
    planes = core._planes(torch.ones(1, 1, 1, 36, 64), torch.zeros(1, 4, 1))
    assert planes[0, 0, :, :, 0].sum(dim=1).nonzero().flatten().tolist() == list(range(14, 50))


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@pytest.mark.parametrize("num_neurons", [1, 5])
def test_clips_of_any_length_give_positive_rates_for_all_frames(num_frames, num_neurons):
    encoder = build((num_neurons,))
    predicted = encoder(*clip(num_frames), session="mouse0")
    assert predicted.shape == (2, num_neurons, num_frames)
    assert (predicted >= 0).all()


def test_every_touched_parameter_gets_a_gradient_and_no_other_session_s():
    encoder = build((5, 6))
    encoder(*clip(), session="mouse0").square().sum().backward()
    assert all(p.grad is not None for p in encoder.core_parameters())
    assert all(p.grad is not None for p in encoder.session_parameters("mouse0"))
    assert all(p.grad is None for p in encoder.session_parameters("mouse1"))


def test_blocks_are_skipped_more_often_the_later_they_come():
    encoder = DwiseNeuroConfig(**(TINY | {"drop_path": 0.3})).build(sessions(1), (5, 12))
    assert [block.drop_path.rate for block in encoder.core.blocks] == pytest.approx([0, 0.1, 0.2])


def test_weights_start_with_the_deviation_of_their_fan_out():
    torch.manual_seed(0)
    core = (
        DwiseNeuroConfig(channels=(64,), strides=(1,), cortex_channels=(512,))
        .build(sessions(1), (5, 12))
        .core
    )
    block = core.blocks[0]
    for weight, fan_out in (
        (block.expand.weight, 448),
        (block.spatial.weight, 9),
        (block.temporal.weight, 5),
        (block.gate.layers[2].weight, 448),
        (core.cortex[0].mix.weight, 256),
    ):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


@pytest.mark.parametrize(
    ("expansion", "core_count", "total_new", "total_all"),
    [(7, 3_673_404, 91_109_792, 170_656_070), (6, 3_075_736, 90_512_124, 170_058_402)],
)
def test_parameter_counts_are_those_of_the_released_code(expansion, core_count, total_new, total_all):
    config = DwiseNeuroConfig(expansion=expansion)
    with torch.device("meta"):
        encoder = config.build(sessions(*NEW_MICE, *OLD_MICE), (36, 64))
    cortex = encoder.core.cortex
    assert [count(layer) for layer in cortex] == [135_168, 1_056_768, 4_210_688]
    assert count(cortex) == 5_402_624
    assert count(encoder.core) - count(cortex) == core_count
    per_mouse = [count(readout) for readout in encoder.readouts.values()]
    assert per_mouse == READOUTS
    assert count(encoder.core) + sum(per_mouse[:5]) == total_new
    assert count(encoder) == total_all
    squeezed = [block.gate.layers[0].out_features for block in encoder.core.blocks]
    assert squeezed == [2 * expansion] * 4 + [4 * expansion] * 3 + [8 * expansion] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expansion": 0}, "expansion is 0, but must be at least 1"),
        ({"strides": (2, 1)}, r"strides is \(2, 1\), but must be one entry per block, 9"),
        ({"channels": ()}, r"channels is \(\), but must be one or more numbers"),
        ({"temporal_kernel": 4}, "temporal_kernel is 4, but must be odd"),
        ({"cortex_channels": (1024, 2047)}, "groups is 2, but must be a divisor of .*, 2047"),
        ({"readout_dropout": 1.0}, "readout_dropout is 1.0, but must be at least 0 and less than 1"),
        ({"softplus_beta": 0.0}, "softplus_beta is 0.0, but must be positive"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DwiseNeuroConfig(**changes)


def test_without_a_canvas_frames_of_any_size_lie_edge_to_edge():
    for frame_shape in ((5, 11), (36, 64)):
        encoder = build(frame_shape=frame_shape, canvas=None)
        video, behavior, pupil = clip(frame_shape=frame_shape)
        planes = encoder.core._planes(video, torch.cat([behavior, pupil], dim=1))
        assert torch.equal(planes[..., 0], video[:, 0])
        assert encoder(video, behavior, pupil, session="mouse0").shape[2] == video.shape[2]


def test_frames_larger_than_the_canvas_are_refused():
    with pytest.raises(ValueError, match=r"frames are \(36, 65\) pixels, but must fit on canvas, \(64, 64\)"):
        DwiseNeuroConfig().build(sessions(1), (36, 65))
