"""Bias correction: the mean of each layer's output is that of the float layer again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Graph
from compress.program import run_program
from compress.quantize import quantize
from compress.quantize.bias import correct_biases
from compress.quantize.prepare import convert
from compress.saving import export_model
from tests.compress.quantize.recovered import Named, data_of, feeds, int8, model_of, noise, sqnr


def biased() -> nn.Linear:
    """Steps are 0.01 and all other weights end in 4 thousandths, which rounding takes from each."""
    layer = nn.Linear(8, 2)
    layer.weight.data = torch.full((2, 8), 0.104)
    layer.weight.data[:, 0] = 1.27
    layer.bias.data = torch.tensor([1.0, -1.0])
    return layer


def test_the_correction_by_hand() -> None:
    model, x = model_of(Named(biased()), 8), np.full((16, 8), 2.0, np.float32)     # exact on the activations' grid
    plain = int8(model, x)
    found, count = correct_biases(plain, feeds(plain, x))
    assert count == 1
    # seven inputs of 2 lose 0.004 each: the output is 0.056 too small
    np.testing.assert_allclose(found.weights["module.bias"], [1.056, -0.944], atol=1e-5)
    np.testing.assert_allclose(run_program(convert(found), {"x": x})["output"], run_program(model, {"x": x})["output"],
                               atol=1e-5)  # fmt: skip
    assert model.weights["module.bias"].tolist() == [1.0, -1.0]


class Deep(nn.Module):
    """Layers whose errors all have one sign, on activations that are all positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = biased(), nn.Linear(2, 8), biased()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.second(self.first(x)) + 2)
        return self.third(seen + self.conv(seen[:, None])[:, 0])


def test_layer_after_layer_each_mean_is_right_and_the_output_nearer() -> None:
    torch.manual_seed(0)
    model, x = model_of(Deep(), 8), np.abs(noise(64, 8))
    plain = int8(model, x)
    found, count = correct_biases(plain, feeds(plain, x))
    assert count == 3       # the convolution has no bias
    wanted, given = (run_program(one, {"x": x})["output"] for one in (model, convert(found)))
    np.testing.assert_allclose(given.mean(0), wanted.mean(0), atol=1e-4)
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 6
    again, _ = correct_biases(plain, feeds(plain, x))
    for name, value in found.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)


def test_constant_and_zero_activations() -> None:
    model = model_of(Named(nn.Linear(4, 3)), 4)
    x = np.zeros((8, 4), np.float32)
    plain = int8(model, x)
    found, _ = correct_biases(plain, feeds(plain, x))
    np.testing.assert_array_equal(found.weights["module.bias"], model.weights["module.bias"])


def test_a_layer_of_two_graphs_keeps_its_bias() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.own = nn.Linear(4, 4), nn.Linear(4, 2)

        def one(self, x: Tensor) -> Tensor:
            return self.shared(x)

        def two(self, x: Tensor) -> Tensor:
            return self.own(self.shared(x))

    model = export_model(Two().eval(), name="two", example={"x": noise(2, 4)},
                         graphs={"one": Graph("one", ("x",)), "two": Graph("two", ("x",))})  # fmt: skip
    plain = quantize(model, data_of(model, noise(16, 4)), scheme="x86-vnni").model
    found, count = correct_biases(plain, {name: [{"x": noise(16, 4)}] for name in model.graphs})
    assert count == 1
    assert torch.equal(found.weights["shared.bias"], model.weights["shared.bias"])
    assert not torch.equal(found.weights["own.bias"], model.weights["own.bias"])
