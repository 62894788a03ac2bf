import pytest
import torch
from torch.nn import functional

from models.conv_gru import ConvGRU, _FourierRecurrence, _recurrence
from models.cores.gru import GRUConfig, GRUCore
from models.fourier import FourierPlan, conv2d, fourier_conv2d

TINY = GRUConfig(
    num_layers=3,
    features=2,
    num_rotations=4,
    input_kernel=4,
    hidden_kernel=3,
    gru_channels=3,
    gru_input_kernel=3,
    gru_recurrent_kernel=3,
)


def by_steps(gru, maps):
    """Run a GRU frame by frame with one convolution per gate and input, as its equations say."""
    kernels = dict(zip(("wz", "wr", "wc"), gru.input.weight.chunk(3), strict=True))
    kernels |= dict(zip(("uz", "ur"), gru.update_and_reset.weight.chunk(2), strict=True))
    kernels["uc"] = gru.candidate.weight
    biases = dict(zip(("wz", "wr", "wc"), gru.input.bias.chunk(3), strict=True))
    biases |= dict(zip(("uz", "ur"), gru.update_and_reset.bias.chunk(2), strict=True))
    biases["uc"] = gru.candidate.bias

    def convolve(name, x):
        return functional.conv2d(x, kernels[name], biases[name], padding=kernels[name].shape[-1] // 2)

    state = torch.zeros(len(maps), gru.channels, *maps.shape[-2:], dtype=maps.dtype)
    states = []
    for x in maps.unbind(dim=2):
        z = torch.sigmoid(convolve("wz", x) + convolve("uz", state))
        r = torch.sigmoid(convolve("wr", x) + convolve("ur", state))
        c = torch.tanh(convolve("wc", x) + convolve("uc", r * state))
        state = (1 - z) * state + z * c
        states.append(state)
    return torch.stack(states, dim=2)


@pytest.mark.parametrize("recurrent_kernel", [3, 7])
def test_gru_equals_its_equations_step_by_step(recurrent_kernel):
    torch.manual_seed(0)
    gru = ConvGRU(2, 3, input_kernel=7, recurrent_kernel=recurrent_kernel)
    for convolution in (gru.input, gru.update_and_reset, gru.candidate):
        torch.nn.init.normal_(convolution.bias)
    maps = torch.randn(2, 2, 5, 6, 7)
    torch.testing.assert_close(gru(maps), by_steps(gru, maps), rtol=1e-4, atol=1e-5)


def test_gradients_of_the_gru_by_fourier_transform_are_those_of_its_equations():
    torch.manual_seed(1)
    gru = ConvGRU(2, 3, input_kernel=7, recurrent_kernel=7)
    maps = torch.randn(2, 2, 4, 5, 6)
    weights = torch.randn(2, 3, 4, 5, 6)
    parameters = list(gru.parameters())
    expected = torch.autograd.grad((by_steps(gru, maps) * weights).sum(), parameters)
    gradients = torch.autograd.grad((gru(maps) * weights).sum(), parameters)
    for gradient, of_steps in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, of_steps, rtol=1e-3, atol=1e-4)


def test_gradient_back_through_time_is_right_to_double_precision():
    torch.manual_seed(2)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 1, 3, 4, 3), (2, 1, 3, 3), (1, 1, 3, 3))
    ]
    torch.testing.assert_close(_FourierRecurrence.apply(*inputs), _recurrence(*inputs))
    assert torch.autograd.gradcheck(_FourierRecurrence.apply, inputs)


@pytest.mark.parametrize(
    ("shape", "kernel", "padding"), [((5, 6), 3, 1), ((6, 5), 3, 0), ((4, 4), 5, 4), ((7, 4), 1, 0)]
)
def test_convolution_by_fourier_transform_equals_the_direct_one(shape, kernel, padding):
    torch.manual_seed(3)
    maps = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = functional.conv2d(maps, kernels, padding=padding)
    torch.testing.assert_close(fourier_conv2d(maps, kernels, padding=padding), expected)
    assert torch.autograd.gradcheck(lambda *x: fourier_conv2d(*x, padding=padding), (maps, kernels))


def test_maps_are_transformed_in_chunks_that_cover_all_of_them():
    plan = FourierPlan(in_shape=(600, 600), kernel=9, padding=4)
    covered = [index for chunk in plan.chunks(40, 3) for index in range(40)[chunk]]
    assert covered == list(range(40))
    assert len(list(plan.chunks(40, 3))) > 1


def test_large_kernels_in_half_precision_are_convolved_in_single_precision():
    torch.manual_seed(4)
    maps, kernels = torch.randn(1, 2, 9, 9).bfloat16(), torch.randn(2, 2, 7, 7)
    expected = functional.conv2d(maps.float(), kernels, padding=3)
    torch.testing.assert_close(conv2d(maps, kernels, padding=3), expected, rtol=1e-4, atol=1e-4)


def by_definition(core, video, behavior, *, training):
    """Run the core's layers with planes of behavior and statistics over rotations, frames and pixels."""
    features = torch.cat([video, behavior[..., None, None].expand(-1, -1, -1, *video.shape[-2:])], dim=1)
    frames = features.transpose(1, 2).flatten(0, 1)
    for index, layer in enumerate(core.layers):
        frames = functional.conv2d(frames, layer.kernels(), padding=1 if index else 0)
        by_rotation = frames.unflatten(1, (4, 2))
        mean, variance = layer.norm.running_mean, layer.norm.running_var
        if training:
            mean = by_rotation.mean((0, 1, 3, 4))
            variance = by_rotation.var((0, 1, 3, 4), correction=0)
        mean, variance, weight, bias = (
            tensor[:, None, None] for tensor in (mean, variance, layer.norm.weight, layer.norm.bias)
        )
        frames = ((by_rotation - mean) / torch.sqrt(variance + 1e-5) * weight + bias).flatten(1, 2)
        if index < len(core.layers) - 1:
            frames = functional.elu(frames)
    return by_steps(core.gru, frames.unflatten(0, (len(video), -1)).transpose(1, 2))


@pytest.mark.parametrize("training", [True, False])
def test_core_equals_its_definition(training):
    torch.manual_seed(5)
    core = GRUCore(TINY, (8, 9)).train(training)
    with torch.no_grad():
        for layer in core.layers:
            layer.norm.bias.normal_()
            layer.norm.running_mean.normal_()
            layer.norm.weight.uniform_(0.5, 2)
            layer.norm.running_var.uniform_(0.5, 2)
        video, behavior = torch.randn(2, 1, 3, 8, 9), torch.randn(2, 2, 3)
        expected = by_definition(core, video, behavior, training=training)
        for _ in range(2):  # the second time from kernels kept since the first
            features = core(video, behavior, behavior)
            torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 3, 3, *core.out_shape)


def test_kept_kernels_follow_the_parameters():
    torch.manual_seed(6)
    core = GRUCore(TINY, (8, 9)).eval()
    inputs = torch.randn(1, 1, 2, 8, 9), torch.randn(1, 2, 2), torch.randn(1, 2, 2)
    with torch.no_grad():
        before = core(*inputs)
        core.layers[1].kernels.coefficients.mul_(2)
        after = core(*inputs)
        assert not torch.equal(before, after)
        core.train()
        core.eval()
        assert torch.equal(core(*inputs), after)
        core.layers[2].norm.running_var.mul_(3)
        assert not torch.equal(core(*inputs), after)


def test_regularizer_is_roughness_of_the_first_and_mean_norm_of_the_other_kernels():
    core = GRUCore(TINY, (8, 9))
    first, *others = [layer.kernels().detach() for layer in core.layers]
    laplacian = torch.tensor([[[[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]]])
    filtered = functional.conv2d(first.reshape(-1, 1, 4, 4), laplacian, padding=1)
    expected = 500 * filtered.pow(2).sum() / first.pow(2).sum()
    norms = [[kernel.pow(2).sum().sqrt() for by_input in layer for kernel in by_input] for layer in others]
    expected += 500_000 * sum(sum(of_layer) / len(of_layer) for of_layer in norms) / len(norms)
    torch.testing.assert_close(core.regularizer(), expected)


def test_published_model_predicts_every_frame_from_28_by_56_pixels():
    assert GRUConfig().warmup_frames == 0
    assert GRUCore(GRUConfig(), (36, 64)).out_shape == (28, 56)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_kernel": 6}, "hidden_kernel is 6, but must be odd, so that maps keep their size"),
        ({"gru_recurrent_kernel": 8}, "gru_recurrent_kernel is 8, but must be odd"),
        ({"num_rotations": 0}, "num_rotations is 0, but must be at least 1"),
        ({"sparsity": -1.0}, "sparsity is -1.0, but must be at least 0"),
        ({"coefficient_std": 0.0}, "coefficient_std is 0.0, but must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GRUConfig(**settings)


def test_frames_smaller_than_the_kernel_are_refused():
    with pytest.raises(ValueError, match=r"frame_shape is \(8, 64\), but must be more than 8"):
        GRUConfig().build([], (8, 64))


def test_autocast_leaves_the_fourier_transform_in_full_precision():
    maps, kernels = torch.randn(1, 2, 9, 9, requires_grad=True), torch.randn(3, 2, 7, 7, requires_grad=True)
    expected = functional.conv2d(maps, kernels)
    with torch.autocast("cpu", torch.bfloat16):
        convolved = fourier_conv2d(maps, kernels)
        torch.testing.assert_close(convolved, expected, rtol=1e-4, atol=1e-4)
        # A backward pass within autocast is unusual, but nothing forbids it.
        gradients = torch.autograd.grad(convolved.sum(), (maps, kernels))
    for gradient, truth in zip(gradients, torch.autograd.grad(expected.sum(), (maps, kernels)), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-4)


def test_a_gru_with_published_kernels_learns_under_autocast():
    torch.manual_seed(0)
    gru = ConvGRU(2, 3, input_kernel=9, recurrent_kernel=9)
    maps = torch.randn(1, 2, 4, 6, 7)
    expected = gru(maps)
    with torch.autocast("cpu", torch.bfloat16):
        states = gru(maps)
    torch.testing.assert_close(states.float(), expected, rtol=0.05, atol=0.02)
    states.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gru.parameters())
