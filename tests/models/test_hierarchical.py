import numpy as np
import pytest
import torch
from torch.nn import functional

from models.encoder import SessionSpec
from models.readouts.hierarchical import HierarchicalReadout
from models.resize import nearest

MICE = (7863, 7908, 8202, 7939, 8122, 7440, 7928, 8285, 7671, 7495)


def spec(num_neurons):
    rng = np.random.default_rng(7)
    return SessionSpec(
        session="mouse",
        num_neurons=num_neurons,
        coordinates_um=torch.from_numpy(rng.normal(size=(num_neurons, 3))).float(),
        mean_response=torch.arange(num_neurons, dtype=torch.float32),
    )


def build(num_neurons=11, **changes):
    torch.manual_seed(0)
    readout = HierarchicalReadout(spec(num_neurons), 3, **({"levels": (2, 4), "fusion": "mean"} | changes))
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter)
    return readout.eval()


def inputs(num_clips=2, num_frames=3):
    generator = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(num_clips, 3, num_frames, 4, 5, generator=generator),
        "behavior": torch.randn(num_clips, 2, num_frames, generator=generator),
        "pupil": torch.randn(num_clips, 2, num_frames, generator=generator),
        "shift": 0.1 * torch.randn(num_clips, num_frames, 2, generator=generator),
    }


def read(readout, given):
    features = given["features"]
    return readout(features, behavior=given["behavior"], pupil=given["pupil"], shift=given["shift"])


def sample_pixel(image, x, y):
    """Bilinear between pixels, zero outside; x and y in -1..1."""
    depth, height, width = image.shape
    column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
    total = np.zeros(depth)
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
        for c in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= r < height and 0 <= c < width:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return total


def by_hand(readout, given):
    """Levels of one frame and neuron after another, in numpy."""
    features, shift = given["features"].double().numpy(), given["shift"].double().numpy()
    num_neurons = readout.weights.shape[1]
    mean = readout.positions.mean().detach().double().numpy()
    out = np.zeros((1 + len(readout.levels), features.shape[0], features.shape[2], num_neurons))
    for k, level in enumerate([readout, *readout.levels]):
        weights = level.weights.detach().double().numpy()
        count = weights.shape[1]
        for b, t in np.ndindex(features.shape[0], features.shape[2]):
            position = mean + shift[b, t]
            pseudo = [
                sample_pixel(features[b, :, t], *position[j * num_neurons // count]) @ weights[:, j]
                for j in range(count)
            ]
            for i in range(num_neurons):
                value = pseudo[i * count // num_neurons]
                out[k, b, t, i] = value if k == 0 else refine(level.refine, value)
    return out


def refine(net, value):
    first, _, last = net
    hidden = first.weight.detach().double().numpy()[:, 0] * value + first.bias.detach().double().numpy()
    return last.weight.detach().double().numpy()[0] @ np.where(
        hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("levels", [(), (3,), (2, 4), (2, 4, 8, 16)])
def test_mean_fusion_averages_levels_read_neuron_by_neuron(levels):
    readout, given = build(levels=levels), inputs()
    expected = by_hand(readout, given).mean(axis=0) + readout.bias.detach().numpy()
    actual = read(readout, given).detach().numpy()
    np.testing.assert_allclose(actual, np.swapaxes(expected, 1, 2), rtol=1e-4, atol=1e-3)


def test_adaptive_fusion_weighs_the_levels_of_each_clip_by_their_means():
    readout, given = build(fusion="adaptive"), inputs()
    levels = by_hand(readout, given)
    first, _, second, _ = readout.fusion.layers
    expected = np.zeros(levels.shape[1:])
    for b in range(levels.shape[1]):
        means = levels[:, b].mean(axis=(1, 2))
        hidden = np.maximum(first.weight.detach().numpy() @ means + first.bias.detach().numpy(), 0)
        weights = sigmoid(second.weight.detach().numpy() @ hidden + second.bias.detach().numpy())
        expected[b] = sum(weight * level for weight, level in zip(weights, levels[:, b], strict=True))
    expected += readout.bias.detach().numpy()
    actual = read(readout, given).detach().numpy()
    np.testing.assert_allclose(actual, np.swapaxes(expected, 1, 2), rtol=1e-4, atol=1e-3)


def test_nearest_is_torch_s_rule_for_all_mice_and_levels():
    for num_neurons in MICE:
        for factor in (2, 4, 8, 16):
            count = num_neurons // factor
            for source, target in ((num_neurons, count), (count, num_neurons)):
                row = torch.arange(source, dtype=torch.float32)[None, None]
                expected = functional.interpolate(row, size=target, mode="nearest")[0, 0].long()
                assert torch.equal(nearest(source, target), expected)


def test_nearest_differs_from_exact_integers_only_where_the_reference_does():
    differing = {}
    for num_neurons in MICE:
        for factor in (2, 4, 8, 16):
            count = num_neurons // factor
            exact = torch.arange(count) * num_neurons // count
            if wrong := int((nearest(num_neurons, count) != exact).sum()):
                differing[num_neurons, factor] = wrong
            up = torch.arange(num_neurons) * count // num_neurons
            assert torch.equal(nearest(count, num_neurons), up)
    assert differing == {(7863, 2): 1, (7939, 2): 1, (8285, 2): 3, (8285, 4): 1, (7671, 2): 2}


def test_fewer_neurons_than_a_level_joins_share_one_pseudo_neuron():
    readout = build(1, levels=(2, 16))
    assert [level.weights.shape for level in readout.levels] == [(3, 1), (3, 1)]
    assert read(readout, inputs()).shape == (2, 1, 3)


def test_unused_levels_change_no_prediction():
    given = inputs()
    without = build(levels=(4,), fusion="adaptive")
    with_unused = build(levels=(4,), fusion="adaptive", unused_levels=True)
    with_unused.load_state_dict(without.state_dict(), strict=False)
    assert len(with_unused.unused) == 3 + 3
    torch.testing.assert_close(read(with_unused, given), read(without, given))


def test_all_used_parameters_get_a_gradient_while_training():
    readout = build(fusion="adaptive").train()
    read(readout, inputs()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in readout.parameters())


def test_pseudo_neurons_follow_the_noise_of_their_neuron():
    readout, given = build(levels=(2,)).train(), inputs()
    with torch.no_grad():
        readout.weights.zero_()
        readout.levels[0].weights.copy_(torch.ones(3, 5))
    torch.manual_seed(3)
    first = read(readout, given)
    torch.manual_seed(4)
    assert not torch.allclose(first, read(readout, given))
    torch.manual_seed(3)
    torch.testing.assert_close(first, read(readout, given))
