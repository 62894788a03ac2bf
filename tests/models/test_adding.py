"""The page on adding a model is code that runs."""

import sys
from pathlib import Path

import torch

from models.cost import estimate_cost
from models.encoder import SessionSpec

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"


def example(tmp_path, monkeypatch):
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 60
    (tmp_path / "pooled_example.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pooled_example", raising=False)
    import pooled_example

    return pooled_example.PooledConfig(channels=3, kernel=4)


def test_the_example_of_the_page_trains_a_step(tmp_path, monkeypatch):
    config = example(tmp_path, monkeypatch)
    spec = SessionSpec(
        session="mouse", num_neurons=4, coordinates_um=torch.rand(4, 3), mean_response=torch.rand(4)
    )
    torch.manual_seed(0)
    encoder = config.build([spec], (9, 12))
    video, behavior, pupil = torch.randn(2, 1, 10, 9, 12), torch.randn(2, 2, 10), torch.randn(2, 2, 10)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        torch.manual_seed(1)
        rates = encoder(video, behavior, pupil, session="mouse")
        assert rates.shape == (2, 4, 7)
        loss = (rates - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert estimate_cost(config, {"mouse": 4}, (2, 10, 9, 12), training=True).parameters == sum(
        parameter.numel() for parameter in encoder.parameters()
    )
