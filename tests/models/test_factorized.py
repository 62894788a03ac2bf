import pytest
import torch
from torch import nn
from torch.nn import functional

from models.cores.factorized import FactorizedConfig, FactorizedCore
from models.smoothness import spatial_roughness, temporal_roughness

TINY = FactorizedConfig(
    channels=(4, 3),
    input_spatial_kernel=5,
    hidden_spatial_kernel=3,
    input_temporal_kernel=4,
    hidden_temporal_kernel=2,
)


def clip(*, clips=2, frames=9, shape=(9, 11), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(clips, 1, frames, *shape, generator=generator),
        torch.randn(clips, 2, frames, generator=generator),
        torch.randn(clips, 2, frames, generator=generator),
    )


def by_3d_convolutions(core, video, behavior, *, training):
    """Do the same as the core with planes of behavior and three-dimensional convolutions."""
    planes = behavior[..., None, None].expand(-1, -1, -1, *video.shape[-2:])
    features = torch.cat([video, planes], dim=1)
    for layer in core.layers:
        features = functional.conv3d(features, layer.spatial.weight[:, :, None], layer.spatial.bias)
        features = functional.conv3d(features, layer.temporal.weight[..., None], layer.temporal.bias)
        norm = layer.norm
        mean, variance = norm.running_mean, norm.running_var
        if training:
            mean, variance = features.mean((0, 2, 3, 4)), features.var((0, 2, 3, 4), correction=0)
        per_channel = [tensor[:, None, None, None] for tensor in (mean, variance, norm.weight, norm.bias)]
        mean, variance, weight, bias = per_channel
        features = functional.elu((features - mean) / torch.sqrt(variance + 1e-5) * weight + bias)
    return features


@pytest.mark.parametrize("training", [True, False])
def test_core_equals_three_dimensional_convolutions_over_planes_of_behavior(training):
    torch.manual_seed(1)
    core = FactorizedCore(TINY, (9, 11)).train(training)
    with torch.no_grad():
        for layer in core.layers:
            for tensor in (layer.spatial.bias, layer.temporal.bias, layer.norm.bias, layer.norm.running_mean):
                tensor.normal_()
            for tensor in (layer.norm.weight, layer.norm.running_var):
                tensor.uniform_(0.5, 2)
    video, behavior, pupil = clip()
    expected = by_3d_convolutions(core, video, behavior, training=training)
    features = core(video, behavior, pupil)
    assert features.shape == (2, 3, 9 - TINY.warmup_frames, *core.out_shape)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_running_statistics_take_the_newest_batch_with_the_momentum():
    core = FactorizedCore(TINY, (9, 11)).train()
    before = core.layers[0].norm.running_mean.clone()
    seen = []
    core.layers[0].norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    core(*clip())
    expected = 0.3 * before + 0.7 * seen[0].detach().mean((0, 2, 3))
    torch.testing.assert_close(core.layers[0].norm.running_mean, expected)


def test_published_model_needs_18_frames_and_returns_18_by_46_pixels():
    config = FactorizedConfig()
    assert config.warmup_frames == 18
    assert FactorizedCore(config, (36, 64)).out_shape == (18, 46)


def test_kernels_start_xavier_normal_and_biases_at_zero():
    core = FactorizedCore(FactorizedConfig(), (36, 64))
    for layer in core.layers:
        for convolution in (layer.spatial, layer.temporal):
            out_channels, in_channels, *size = convolution.weight.shape
            spread = (2 / ((out_channels + in_channels) * size[0] * size[1])) ** 0.5
            assert convolution.weight.std().item() == pytest.approx(spread, rel=0.05)
            assert not convolution.bias.any()


def test_regularizer_is_the_weighted_roughness_of_the_first_kernels():
    config = FactorizedConfig(channels=(2, 2), spatial_smoothness=10, temporal_smoothness=0.01)
    core = FactorizedCore(config, (36, 64))
    spatial, temporal = core.layers[0].spatial.weight, core.layers[0].temporal.weight
    laplacian = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    filtered = functional.conv2d(spatial.reshape(-1, 1, 11, 11), laplacian[None, None], padding=1)
    over_time = functional.conv1d(temporal.reshape(-1, 1, 11), torch.tensor([[[-1.0, 4, -1]]]), padding=1)
    expected = 10 * filtered.pow(2).sum() / spatial.pow(2).sum()
    expected += 0.01 * over_time.pow(2).sum() / temporal.pow(2).sum()
    torch.testing.assert_close(core.regularizer(), expected)


def test_roughness_of_kernels_counted_by_hand():
    # One pixel: 4 in its place and -1 at four neighbors, inside of the kernel two of them.
    corner = torch.zeros(1, 3, 3)
    corner[0, 0, 0] = 2
    assert spatial_roughness(corner).item() == 16 + 1 + 1
    assert temporal_roughness(torch.tensor([[1.0, 1, 1]])).item() == pytest.approx((9 + 4 + 9) / 3)


def test_a_constant_input_plane_is_a_channel_of_the_first_convolution():
    torch.manual_seed(2)
    core = FactorizedCore(TINY, (9, 11)).eval()
    assert isinstance(core.layers[0].spatial, nn.Conv2d)
    video, behavior, pupil = clip()
    changed = behavior.clone()
    changed[0, 1, -1] += 1
    difference = (core(video, changed, pupil) - core(video, behavior, pupil)).abs().amax((1, 3, 4))
    # Only the clip and the last of its frames have seen the change.
    assert difference[0, -1] > 0
    assert difference[0, :-1].max() == 0
    assert difference[1].max() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ()}, r"channels is \(\), but must be one positive number for each layer"),
        ({"channels": (8, 0)}, r"channels is \(8, 0\)"),
        ({"input_temporal_kernel": 0}, "input_temporal_kernel is 0, but must be at least 1"),
        ({"norm_momentum": 1.5}, "norm_momentum is 1.5, but must be above 0 and at most 1"),
        ({"spatial_smoothness": -1.0}, "spatial_smoothness is -1.0, but must be at least 0"),
        ({"position_sigma": 0.0}, "position_sigma is 0.0, but must be positive"),
        ({"shifter_hidden": -1}, "shifter_hidden is -1, but must be at least 0"),
        ({"output": "relu"}, "output is 'relu', but must be one of elu_plus_one, exponential"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FactorizedConfig(**settings)


def test_frames_smaller_than_the_kernels_are_refused():
    with pytest.raises(ValueError, match=r"frame_shape is \(18, 64\), but must be more than 18"):
        FactorizedConfig().build([], (18, 64))
