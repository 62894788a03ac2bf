import copy

import pytest
import torch
from torch import nn

from training.averaging import AveragingError, MovingAverage


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(6, 1))


def train_step(module, seed):
    generator = torch.Generator().manual_seed(seed)
    module.train()
    module(torch.randn(4, 2, 2, generator=generator)).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_parameters_and_buffers_follow_the_recursion_and_counters_are_copied(decay):
    module = make_module()
    average = MovingAverage(module, decay=decay)
    expected = {name: tensor.double() for name, tensor in values(module).items()}
    for step in range(5):
        train_step(module, step)
        average.update()
        for name, tensor in values(module).items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    state = average.state_dict()
    assert set(state) == set(module.state_dict())
    for name, tensor in state.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert state["1.num_batches_tracked"] == 5


def test_the_average_is_in_the_module_only_inside_the_context():
    module = make_module()
    average = MovingAverage(module, decay=0.9)
    for step in range(3):
        train_step(module, step)
        average.update()
    own, averaged = values(module), {name: tensor.clone() for name, tensor in average.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(values(module), averaged, rtol=0, atol=0)
    torch.testing.assert_close(values(module), own, rtol=0, atol=0)
    torch.testing.assert_close(average.state_dict(), averaged, rtol=0, atol=0)


def test_the_modules_own_values_come_back_after_an_error():
    module = make_module()
    average = MovingAverage(module)
    train_step(module, 0)
    own = values(module)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    torch.testing.assert_close(values(module), own, rtol=0, atol=0)


def test_applying_tells_caches_that_parameters_changed():
    module = make_module()
    average = MovingAverage(module)
    before = [parameter._version for parameter in module.parameters()]
    with average.applied():
        inside = [parameter._version for parameter in module.parameters()]
    after = [parameter._version for parameter in module.parameters()]
    assert all(a < b < c for a, b, c in zip(before, inside, after, strict=True))


def test_a_resumed_average_equals_an_uninterrupted_one():
    module = make_module()
    average = MovingAverage(module, decay=0.9)
    for step in range(2):
        train_step(module, step)
        average.update()
    saved_module, saved_average = copy.deepcopy(module.state_dict()), copy.deepcopy(average.state_dict())
    resumed_module = make_module()
    resumed = MovingAverage(resumed_module, decay=0.9)
    resumed_module.load_state_dict(saved_module)
    resumed.load_state_dict(saved_average)
    for step in range(2, 5):
        for m, a in ((module, average), (resumed_module, resumed)):
            train_step(m, step)
            a.update()
    torch.testing.assert_close(resumed.state_dict(), average.state_dict(), rtol=0, atol=0)


def test_gradients_and_optimizers_of_the_module_are_left_alone():
    module = make_module()
    average = MovingAverage(module)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 2, 2)).sum().backward()
    with average.applied():
        pass
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in module.parameters())
    optimizer.step()


def test_misuse_is_refused():
    module = make_module()
    average = MovingAverage(module)
    with average.applied():
        for action in (average.update, average.state_dict, average.applied().__enter__):
            with pytest.raises(RuntimeError, match="leave applied"):
                action()
    state = dict(average.state_dict())
    state["0.weight"] = torch.zeros(1)
    with pytest.raises(
        AveragingError, match=r"0.weight is \(1,\) in the saved average, but must be \(3, 2, 1\)"
    ):
        average.load_state_dict(state)
    del state["0.weight"]
    with pytest.raises(AveragingError, match="weight is only in the module"):
        average.load_state_dict(state)
    with pytest.raises(ValueError, match=r"decay is 1.*, but must"):
        MovingAverage(module, decay=1.0)
