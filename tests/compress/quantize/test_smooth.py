"""SmoothQuant's scales by hand, the function unchanged, and a network with outlier channels that needs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.model import Model
from compress.quantize import QuantizeConfig
from compress.quantize.smooth import smooth
from compress.saving import export_model
from runtimes.spec import Feed
from tests.compress.quantize.recovered import int8, model_of, noise, same_function, sqnr


class Readers(nn.Module):
    """Two linear layers read one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.other = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        return torch.cat([self.one(seen), self.other(seen)], -1)


def of(x: np.ndarray) -> list[tuple[str, Feed]]:
    return [("forward", {"x": x[: len(x) // 2]}), ("forward", {"x": x[len(x) // 2 :]})]


def test_the_scales_by_hand() -> None:
    torch.manual_seed(0)
    module = Readers()
    module.norm.weight.data = torch.tensor([1.0, 4.0, 0.5, 2.0])
    module.norm.bias.data = torch.tensor([0.0, 1.0, -1.0, 0.5])
    module.one.weight.data = torch.tensor([[0.5, 1.0, 0.1, 2.0], [0.2, -2.0, 0.4, 0.1], [0.0, 0.0, 0.0, 0.0]])
    module.other.weight.data = torch.tensor([[1.0, 0.5, -0.8, 0.1], [0.1, 0.1, 0.1, 0.1]])
    model, x = model_of(module, 4), noise(20, 4)
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    activation = np.abs(normed * [1.0, 4.0, 0.5, 2.0] + [0.0, 1.0, -1.0, 0.5]).max(0)
    weight = np.array([1.0, 2.0, 0.8, 2.0])         # of both readers
    scale = activation**0.3 / weight**0.7
    found, count = smooth(model, of(x), 0.3)
    assert count == 1
    np.testing.assert_allclose(found.weights["norm.weight"], [1.0, 4.0, 0.5, 2.0] / scale, rtol=1e-5)
    np.testing.assert_allclose(found.weights["norm.bias"], [0.0, 1.0, -1.0, 0.5] / scale, rtol=1e-5)
    for name in ("one.weight", "other.weight"):
        np.testing.assert_allclose(found.weights[name], model.weights[name].numpy() * scale, rtol=1e-5)
    assert found.weights["one.bias"] is model.weights["one.bias"]
    same_function(found, model, x)
    assert model.weights["norm.weight"].tolist() == [1.0, 4.0, 0.5, 2.0]


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


def outliers() -> Model:
    """Two channels of the norm are a hundred times the others, and the weights that read them a hundredth."""
    torch.manual_seed(0)
    module = Perceptron()
    module.norm.weight.data[:2] *= 100
    module.up.weight.data[:, :2] /= 100
    return model_of(module, 32)


def test_it_recovers_what_outlier_channels_cost() -> None:
    model, x = outliers(), noise(64, 32)
    plain, found = (sqnr(model, x, int8(model, x, QuantizeConfig(ranges="minmax", smooth=alpha)))
                    for alpha in (0.0, 0.5))  # fmt: skip
    assert plain < 15
    assert found > plain + 15


def test_one_enormous_outlier_is_migrated_and_stays_finite() -> None:
    model, x = outliers(), noise(16, 32)
    x[3, 5] = 1e30
    found, count = smooth(model, of(x), 0.5)
    assert count == 1       # the norm: what is behind ReLU stays
    assert found.weights["down.weight"] is model.weights["down.weight"]
    assert all(bool(value.isfinite().all()) for value in found.weights.values())
    same_function(found, model, noise(4, 32, seed=2))


def test_channels_of_zeros_stay() -> None:
    torch.manual_seed(0)
    module = Readers()
    module.norm.weight.data[0] = 0.0        # an activation that is always zero
    for reader in (module.one, module.other):
        reader.weight.data[:, 1] = 0.0      # one that nothing reads
    model = model_of(module, 4)
    found, count = smooth(model, of(noise(8, 4)), 0.5)
    assert count == 1
    kept = [bool(a == b) for a, b in zip(found.weights["norm.weight"], model.weights["norm.weight"], strict=True)]
    assert kept == [True, True, False, False]
    same_function(found, model, noise(8, 4))


def test_a_model_whose_activations_are_all_zero_is_left_alone() -> None:
    module = Readers()
    module.norm.weight.data.zero_()
    model = model_of(module, 4)
    assert smooth(model, of(noise(8, 4)), 0.5) == (model, 0)


def test_nothing_that_is_read_elsewhere_is_scaled() -> None:
    class Post(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            seen = self.norm(x)
            return seen + nn.functional.gelu(self.up(seen))

    model = model_of(Post(), 32)
    assert smooth(model, of(noise(8, 32)), 0.5) == (model, 0)


def test_channels_that_are_not_finite_stay() -> None:
    class Huge(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.norm(x) * 3e38 * 10)

    model = export_model(Huge(), name="huge", example={"x": noise(2, 32)})
    assert smooth(model, of(noise(8, 32)), 0.5) == (model, 0)
    with pytest.raises(CompressError, match="is not finite on calibration set"):
        int8(model, noise(8, 32), QuantizeConfig(smooth=0.5))
