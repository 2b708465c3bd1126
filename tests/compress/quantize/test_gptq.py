"""GPTQ by hand, against rounding to nearest, and the moments of every kind of layer against what the layer gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.model import Model
from compress.program import run_program
from compress.quantize.gptq import gptq, layer_moments, round_with_gptq
from compress.quantize.grid import WeightGrid, nearest, steps
from compress.quantize.lockstep import Lockstep
from tests.compress.quantize.recovered import Named, feeds, int8, integers, model_of, noise, sqnr

INT8 = WeightGrid(low=-127, high=127)


def test_what_one_input_errs_another_that_moves_with_it_makes_good() -> None:
    """Inputs 1 and 2 are equal, 0 and 3 are alone; steps are 0.01, as 1.27 is the largest weight."""
    weight = torch.tensor([[1.27, 0.104, 0.104, 0.104]])
    moments = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]) * 50
    assert nearest(weight, 127).tolist() == [[127, 10, 10, 10]]
    found = (gptq(weight, moments, INT8) / 0.01).round()
    assert found.tolist() == [[127, 10, 11, 10]]        # 0.208 in all: 0.21 is nearer than 0.20


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_nearest() -> None:
    weight = torch.from_numpy(noise(5, 12))
    plain = nearest(weight, 127) * steps(weight, 127)
    for moments in (torch.diag(torch.rand(12) + 0.1), torch.zeros(12, 12)):
        np.testing.assert_allclose(gptq(weight, moments, INT8), plain, rtol=1e-6)


def correlated(inputs: int, rows: int = 400) -> np.ndarray:
    return (noise(rows, inputs // 4, seed=5) @ noise(inputs // 4, inputs, seed=6)
            + 0.1 * noise(rows, inputs, seed=7)).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize(("low", "high", "group"), [
    (-127, 127, None), (-63, 63, None), (-7, 7, None), (-7, 7, 20), (-3, 3, 8), (0, 15, None), (0, 15, 20),
])
def test_no_output_errs_more_than_rounded_to_nearest_and_most_err_far_less(
    low: int, high: int, group: int | None
) -> None:
    grid = WeightGrid(low=low, high=high, group=group)
    x, weight = torch.from_numpy(correlated(200)), torch.from_numpy(noise(24, 200))     # more than one block of columns
    rows = grid.rows(weight)
    step, zero = grid.parameters(rows)
    plain = ((grid.nearest(rows) - zero) * step).reshape(weight.shape)
    found = gptq(weight, x.T @ x, grid)
    errors = [((x @ (one - weight).T) ** 2).sum(0) for one in (found, plain)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-4)).all())
    assert errors[0].sum() < 0.5 * errors[1].sum()
    again = grid.rows(found)        # the steps are those of the weights, and the result is on their grid
    found_step, found_zero = grid.parameters(again)
    np.testing.assert_allclose(found_step, step, rtol=1e-6)
    np.testing.assert_array_equal(found_zero, zero)
    np.testing.assert_allclose((grid.nearest(again) - zero) * step, again, rtol=1e-4, atol=1e-6)


def test_an_input_that_is_always_zero_and_one_that_is_enormous() -> None:
    x = correlated(12)
    x[:, 3], x[5, 7] = 0.0, 1e15
    moments, weight = torch.from_numpy(x.astype(np.float64).T @ x), torch.from_numpy(noise(4, 12))
    found = gptq(weight, moments, INT8)
    assert bool(found.isfinite().all())
    np.testing.assert_allclose(found[:, 3], (nearest(weight, 127) * steps(weight, 127))[:, 3], rtol=1e-6)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 5 do not divide 12 inputs"):
        gptq(torch.zeros(2, 12), torch.eye(12), WeightGrid(low=-7, high=7, group=5))


class Layers(nn.Module):
    """A convolution in two groups with strides, one of one axis with a dilation, a linear layer; none has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, bias=False)
        self.along = nn.Conv1d(6, 4, 3, padding=2, dilation=2, bias=False)
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.along(self.plane(x).flatten(2)).transpose(1, 2))


def layered() -> Model:
    torch.manual_seed(0)
    return model_of(Layers(), 4, 6, 5)


def test_the_moments_are_those_of_what_a_layer_multiplies() -> None:
    """Without a bias the squared outputs of channel ``o`` sum to ``w_o M w_o``."""
    model, x = layered(), noise(7, 4, 6, 5)
    found = int8(model, x)
    lockstep = Lockstep(found, "forward", feeds(found, x)["forward"])
    seen = []
    for part in lockstep.parts():
        if (layer := lockstep.layers.get(part.nodes[-1].name)) is not None:
            weight = lockstep.values[layer.fake]
            moments = layer_moments(layer, weight, part)
            rows = weight.flatten(1).unflatten(0, (len(moments), -1)).double()
            given = torch.cat([part.run(feed) for feed in range(len(part.wanted))])
            wanted = (given.double() ** 2).movedim(layer.axis, 0).flatten(1).sum(1)
            squares = torch.einsum("goi,gij,goj->go", rows, moments, rows).flatten()
            np.testing.assert_allclose(squares, wanted, rtol=1e-4)
            seen.append(layer.path)
    assert seen == ["plane", "along", "out"]


def test_a_model_comes_nearer_to_float_and_has_the_integers_that_were_chosen() -> None:
    torch.manual_seed(0)
    model, x = model_of(Named(nn.Linear(40, 16)), 40), correlated(40, 64)
    plain = int8(model, x, scheme="x86")
    found, count = round_with_gptq(plain, feeds(plain, x))
    assert count == 1
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 2
    name = next(name for name in found.weights if name.endswith("weight"))
    chosen = (found.weights[name] / steps(model.weights[name], 63)).round()
    np.testing.assert_array_equal(integers(found, name, 63), chosen)
    assert bool((chosen != nearest(model.weights[name], 63)).any())
    assert found.quantization == plain.quantization
    again, _ = round_with_gptq(plain, feeds(plain, x))
    np.testing.assert_array_equal(again.weights[name], found.weights[name])
    assert not torch.equal(plain.weights[name], found.weights[name])


def test_all_kinds_of_layers_are_rounded() -> None:
    model, x = layered(), noise(40, 4, 6, 5)
    plain = int8(model, x)
    found, count = round_with_gptq(plain, feeds(plain, x))
    assert count == 3
    errors = [np.abs(run_program(one, {"x": x})["output"] - run_program(model, {"x": x})["output"]).mean()
              for one in (found, model)]  # fmt: skip
    assert 0 < errors[0] < 0.02
    assert errors[1] == 0
