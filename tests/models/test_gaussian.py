import copy
import math

import pytest
import torch

from models.encoder import SessionSpec
from models.positions import GaussianPositions, normalize_coordinates
from models.readouts.gaussian import GaussianReadout
from models.sampling import sample_and_dot


def make_spec(num_neurons: int, seed: int = 0) -> SessionSpec:
    generator = torch.Generator().manual_seed(seed)
    return SessionSpec(
        session="mouse",
        num_neurons=num_neurons,
        coordinates_um=torch.rand(num_neurons, 3, generator=generator) * 500,
        mean_response=torch.rand(num_neurons, generator=generator),
    )


def bilinear(image, column, row):
    """Read one value of one channel, zero outside, from the definition."""
    height, width = image.shape
    x, y = (column + 1) / 2 * (width - 1), (row + 1) / 2 * (height - 1)
    total = 0.0
    for i in range(height):
        for j in range(width):
            total += max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i)) * float(image[i, j])
    return total


def readout_by_loop(features, positions, weights):
    return torch.tensor(
        [
            [
                sum(
                    float(weights[channel, neuron])
                    * bilinear(frame[channel], float(position[0]), float(position[1]))
                    for channel in range(frame.shape[0])
                )
                for neuron, position in enumerate(of_frame)
            ]
            for frame, of_frame in zip(features, positions, strict=True)
        ],
        dtype=features.dtype,
    )


@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 3), (2, 1)])
def test_sampling_equals_a_loop_over_neurons_also_outside_of_the_map(height, width):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    positions = torch.rand(2, 9, 2, generator=generator, dtype=torch.float64) * 3 - 1.5
    positions[0, :5] = torch.tensor([[-1, -1], [1, 1], [0, 1], [1e9, 0], [-1e9, -1e9]], dtype=torch.float64)
    weights = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    expected = readout_by_loop(features, positions, weights)
    torch.testing.assert_close(sample_and_dot(features, positions, weights), expected)


def test_gradients_of_sampling_are_right_for_features_positions_and_weights():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    positions = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64) * 2.6 - 1.3
    weights = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (features, positions, weights)]
    assert torch.autograd.gradcheck(sample_and_dot, inputs)
    assert torch.autograd.gradcheck(
        sample_and_dot, [features, positions.detach()[0].requires_grad_(), weights]
    )


def test_positions_without_a_frame_axis_hold_for_every_frame():
    features, positions, weights = torch.randn(3, 2, 4, 5), torch.rand(7, 2), torch.randn(2, 7)
    expected = sample_and_dot(features, positions.expand(3, -1, -1), weights)
    torch.testing.assert_close(sample_and_dot(features, positions, weights), expected, rtol=0, atol=0)


@torch.no_grad()
def test_readout_in_evaluation_equals_its_formula():
    spec = make_spec(6)
    readout = GaussianReadout(spec, 3).eval()
    readout.weights.normal_()
    features, shift = torch.randn(2, 3, 2, 4, 5), torch.rand(2, 2, 2) - 0.5
    signals = torch.zeros(2, 2, 2)
    read = readout(features, behavior=signals, pupil=signals, shift=shift)

    surface = spec.coordinates_um[:, :2] - spec.coordinates_um[:, :2].mean(0)
    hidden, _, last, _ = readout.positions.network
    mean = torch.tanh(
        torch.where(
            (z := surface / surface.abs().max() @ hidden.weight.T + hidden.bias) > 0, z, torch.exp(z) - 1
        )
        @ last.weight.T
        + last.bias
    )
    for clip in range(2):
        positions = mean + shift[clip][:, None]
        expected = readout_by_loop(features[clip].transpose(0, 1), positions, readout.weights)
        torch.testing.assert_close(read[clip], (expected + readout.bias).T)


def test_readout_starts_at_the_mean_response_plus_the_mean_over_channels():
    spec = make_spec(4)
    readout = GaussianReadout(spec, 5).eval()
    signals = torch.zeros(1, 2, 2)
    read = readout(torch.ones(1, 5, 2, 3, 3), behavior=signals, pupil=signals, shift=None)
    torch.testing.assert_close(read, spec.mean_response[None, :, None].expand(1, 4, 2) + 1)


@pytest.mark.parametrize("covariance", ["full", "uncorrelated", "isotropic"])
def test_training_noise_has_the_covariance_of_sigma_and_is_new_in_every_frame(covariance):
    torch.manual_seed(3)
    positions = GaussianPositions(make_spec(3), 4, 0.1, covariance=covariance).train()
    drawn = positions(20_000).detach() - positions.mean().detach()
    sigma = positions.sigma.detach()
    factor = sigma if covariance == "full" else torch.diag_embed(sigma.expand(3, 2))
    measured = torch.einsum("f n i, f n j -> n i j", drawn, drawn) / len(drawn)
    # Four standard errors of a (co)variance of at most 0.02 over 20,000 frames.
    torch.testing.assert_close(measured, factor @ factor.mT, rtol=0, atol=4 * 0.02 * math.sqrt(2 / 20_000))


def test_training_noise_stays_on_the_map_but_the_shift_may_leave_it():
    readout = GaussianReadout(make_spec(8), 2, init_sigma=5.0).train()
    assert readout.positions(50).abs().max() == 1
    signals = torch.zeros(1, 2, 3)
    read = readout(
        torch.ones(1, 2, 3, 4, 4), behavior=signals, pupil=signals, shift=torch.full((1, 3, 2), 9.0)
    )
    torch.testing.assert_close(read, readout.bias[None, :, None].expand(1, 8, 3))


def test_coordinates_are_centered_per_axis_and_scaled_together():
    um = torch.tensor([[0.0, 10.0, 300.0], [200.0, 30.0, 100.0]])
    torch.testing.assert_close(normalize_coordinates(um), torch.tensor([[-1.0, -0.1], [1.0, 0.1]]))
    assert normalize_coordinates(um[:1]).tolist() == [[0.0, 0.0]]


def test_positions_follow_their_parameters_in_evaluation():
    positions = GaussianPositions(make_spec(5), 4, 1.0).eval()
    with torch.no_grad():
        before = positions.mean()
        assert positions.mean() is before
        positions.network[2].bias.add_(1)
        changed = positions.mean()
        assert not torch.equal(changed, before)
        positions.load_state_dict({**positions.state_dict(), "network.2.bias": torch.zeros(2)})
        assert not torch.equal(positions.mean(), changed)
        twin = copy.deepcopy(positions)
        twin.network[2].bias.add_(1)
        assert not torch.equal(twin.mean(), positions.mean())
        assert torch.equal(positions.double().mean(), positions._mean())
    assert not any("cache" in name or "coordinates" in name for name in positions.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden width of the position network is 0"),
        ({"init_sigma": 0.0}, "init_sigma is 0.0, but must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianReadout(make_spec(2), 3, **settings)


def test_spread_weights_set_neurons_apart_around_zero():
    torch.manual_seed(0)
    readout = GaussianReadout(make_spec(200), 50, weight_spread=0.1)
    weights = readout.weights.detach()
    assert abs(float(weights.mean())) < 0.005
    assert abs(float(weights.std()) - 0.1) < 0.005
    assert len(weights[0].unique()) == 200


def test_without_spread_neurons_begin_with_the_mean_of_the_features():
    readout = GaussianReadout(make_spec(3), 4)
    assert torch.equal(readout.weights.detach(), torch.full((4, 3), 0.25))


def test_a_negative_spread_is_refused():
    with pytest.raises(ValueError, match=r"weight_spread is -0\.1, but must not be negative"):
        GaussianReadout(make_spec(3), 4, weight_spread=-0.1)
