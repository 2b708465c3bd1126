"""The reference models' training: its losses by hand, a line it learns, the same weights from the same seed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.zoo.fitting import FitConfig, fit, loss_of, predict, steps_of


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return torch.sigmoid(self.layer(x))


def _samples(count=200):
    x = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    return {"x": x}, (x[:, 0] > x[:, 1]).astype(np.int64)


def test_losses_by_hand():
    scores = torch.tensor([[0.0, math.log(3.0)]])       # softmax: 1/4, 3/4
    assert float(loss_of(scores, torch.tensor([0]), "cross-entropy")) == pytest.approx(math.log(4))
    probability = torch.tensor([[0.25], [0.5]])
    expected = (math.log(4) + math.log(2)) / 2
    assert float(loss_of(probability, torch.tensor([1, 0]), "binary cross-entropy")) == pytest.approx(expected)


def test_a_line_is_learnt_and_the_same_seed_gives_the_same_weights():
    networks, said = [], []
    for _ in range(2):
        torch.manual_seed(0)
        network = Line()
        config = FitConfig(epochs=20, rate=0.05, noise=0.01, seed=3)
        done = fit(network, *_samples(), "binary cross-entropy", config, lambda *step: said.append(step[:2]))
        assert done == steps_of(config, 200) == 20 * 7
        networks.append(network)
    assert said[-1] == (140, 140)
    assert not networks[0].training
    rows, target = _samples()
    assert ((predict(networks[0], rows)[:, 0] > 0.5) == target).mean() > 0.97
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_predict_keeps_the_order_over_batches():
    network = Line()
    rows, _ = _samples()
    with torch.no_grad():
        whole = network(torch.from_numpy(rows["x"])).numpy()
    np.testing.assert_allclose(predict(network, rows, batch=7), whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["epochs", "batch", "rate"])
def test_settings_that_train_nothing(name):
    with pytest.raises(CompressError, match=f"{name} must be above 0, got 0"):
        FitConfig(**{name: 0})
