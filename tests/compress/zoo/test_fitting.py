"""The reference models' training: a line it learns, batches of one shape, the same weights from the same seed."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.zoo.fitting import FitConfig, fit, predict, steps_of
from compress.zoo.tasks import Task, loss_of

DECIDE = partial(loss_of, tasks={"output": Task(loss="binary cross-entropy", labels=("below", "above"))})


def joined(said, output="output"):
    return np.concatenate([outputs[output] for _, outputs in said])


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return torch.sigmoid(self.layer(x))


def _samples(count=200):
    x = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    return [({"x": x}, (x[:, 0] > x[:, 1]).astype(np.int64))]


def test_a_line_is_learnt_and_the_same_seed_gives_the_same_weights():
    networks, said = [], []
    for _ in range(2):
        torch.manual_seed(0)
        network = Line()
        config = FitConfig(epochs=20, rate=0.05, noise=0.01, seed=3)
        done = fit(network, _samples(), DECIDE, config, lambda *step: said.append(step[:2]))
        assert done == steps_of(config, _samples()) == 20 * 7
        networks.append(network)
    assert said[-1] == (140, 140)
    assert not networks[0].training
    ((_, target),) = _samples()
    assert ((joined(predict(networks[0], _samples()))[:, 0] > 0.5) == target).mean() > 0.97
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(first, second)


class Longest(nn.Module):
    """Remembers the shape and the first number of each batch; two outputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x[:, 0].tolist()))
        return {"sum": (self.scale * self.fixed * x).sum(1, keepdim=True), "first": x[:, :1]}


def test_batches_are_of_one_shape_and_hold_each_sample_once():
    parts = [({"x": np.arange(10, dtype=np.float32).reshape(5, 2)}, np.zeros(5, np.float32)),
             ({"x": np.arange(100, 109, dtype=np.float32).reshape(3, 3)}, np.ones(3, np.float32))]
    network = Longest()
    done = fit(network, parts, lambda outputs, target: (outputs["sum"][:, 0] - target).square().mean(),
               FitConfig(epochs=1, batch=2))
    assert done == steps_of(FitConfig(epochs=1, batch=2), parts) == 3 + 2
    assert sorted(shape for shape, _ in network.seen) == [(1, 2), (1, 3), (2, 2), (2, 2), (2, 3)]
    assert sorted(number for _, numbers in network.seen for number in numbers) == [0, 2, 4, 6, 8, 100, 103, 106]
    assert network.scale.item() != 1
    assert network.fixed.item() == 1        # it asks for no gradient, and no weight decay either


def test_predict_gives_every_output_of_every_part_in_order():
    rows = [np.array([[1, 2], [3, 4]], np.float32), np.ones((1, 3), np.float32)]
    parts = [({"x": row}, np.zeros(len(row))) for row in rows]
    said = predict(Longest(), parts, batch=1)
    assert [count for count, _ in said] == [1, 1, 1]
    assert joined(said, "sum").tolist() == [[3], [7], [3]]
    assert joined(said, "first").tolist() == [[1], [3], [1]]


def test_predict_keeps_the_order_over_batches():
    network = Line()
    ((rows, _),) = _samples()
    with torch.no_grad():
        whole = network(torch.from_numpy(rows["x"])).numpy()
    np.testing.assert_allclose(joined(predict(network, _samples(), batch=7)), whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["epochs", "batch", "rate"])
def test_settings_that_train_nothing(name):
    with pytest.raises(CompressError, match=f"{name} must be above 0, got 0"):
        FitConfig(**{name: 0})
