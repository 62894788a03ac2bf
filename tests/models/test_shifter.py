import pytest
import torch

from models.nonlinearities import OUTPUTS, Softplus
from models.shifter import Shifter


@pytest.mark.parametrize(("hidden", "count"), [(5, 57), (16, 354)])
def test_shifter_has_the_published_number_of_parameters(hidden, count):
    assert sum(parameter.numel() for parameter in Shifter(hidden).parameters()) == count


def test_shifter_equals_its_layers_frame_by_frame():
    torch.manual_seed(0)
    shifter = Shifter(4)
    pupil = torch.randn(2, 2, 3)
    shift = shifter(pupil)
    for clip in range(2):
        for frame in range(3):
            values = pupil[clip, :, frame]
            for index in (0, 2, 4):
                values = torch.tanh(shifter.layers[index].weight @ values + shifter.layers[index].bias)
            torch.testing.assert_close(shift[clip, frame], values)


def test_shift_keeps_its_precision_under_autocast():
    shifter, pupil = Shifter(4), torch.randn(1, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(shifter(pupil), shifter.float()(pupil))
        assert shifter(pupil).dtype == torch.float32


def test_shifter_without_hidden_units_is_refused():
    with pytest.raises(ValueError, match="hidden width of the shifter is 0, but must be at least 1"):
        Shifter(0)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_rates_that_grow_with_their_input(name):
    rates = OUTPUTS[name]()(torch.linspace(-30, 30, 61))
    assert (rates >= 0).all()
    assert (rates.diff() >= 0).all()
    assert rates.diff()[25:].min() > 0


def test_outputs_at_some_points_by_formula():
    x = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(OUTPUTS["elu_plus_one"]()(x), torch.tensor([torch.e**-1, 1.0, 3.0]))
    torch.testing.assert_close(OUTPUTS["exponential"]()(x), torch.tensor([torch.e**-1, 1.0, torch.e**2]))
    for module in (OUTPUTS["softplus"](), OUTPUTS["learnable_softplus"]()):
        torch.testing.assert_close(module(x), torch.log(1 + torch.exp(x)))
    torch.testing.assert_close(Softplus(0.07)(x), torch.log(1 + torch.exp(0.07 * x)) / 0.07)
    assert Softplus(0.07)(torch.zeros(1)).item() == pytest.approx(9.902, abs=1e-3)


def test_sharpness_must_be_positive():
    for name in ("softplus", "learnable_softplus"):
        with pytest.raises(ValueError, match=r"beta is -1.0, but must be positive"):
            OUTPUTS[name](-1.0)
