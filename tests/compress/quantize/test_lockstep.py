"""The two programs side by side: what each part is given and should give, in what order, and what is kept of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Graph, Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.blocks import residual_blocks
from compress.quantize.grid import WeightGrid
from compress.quantize.lockstep import Lockstep, peak_bytes, scheduled
from compress.quantize.prepare import convert
from compress.saving import export_model
from tests.compress.quantize.recovered import data_of, feeds, int8, model_of, noise
from tests.compress.quantize.test_blocks import Residual


def residual() -> Model:
    torch.manual_seed(0)
    return model_of(Residual(), 4)


def test_every_part_runs_once_and_the_last_give_what_both_programs_give() -> None:
    model, x = residual(), noise(20, 4)
    found = int8(model, x)
    lockstep = Lockstep(found, "forward", feeds(found, x)["forward"])
    blocks = residual_blocks(lockstep.int8.nodes, lockstep.layers)
    assert [len(block) for block in blocks] == [4, 7]      # with the fake quantizers of what the layers read
    wanted, given = run_program(model, {"x": x}), run_program(convert(found), {"x": x})
    ran: list[str] = []
    for part in lockstep.parts(blocks):
        ran += [node.name for node in part.nodes]
        if part.nodes[-1].name == "linear_4":
            np.testing.assert_allclose(torch.cat(list(part.wanted)), wanted["output"], atol=1e-6)
            np.testing.assert_array_equal(torch.cat([part.run(i) for i in range(3)]), given["output"])
            changed = {lockstep.layers["linear_4"].fake: torch.zeros(2, 4)}
            np.testing.assert_array_equal(part.run(0, changed), model.weights["head.bias"].expand(8, 2))
            assert "linear" not in part.given[0]      # long read by everything
        if part.nodes[-1].name == "mul":        # what reads an inner value of a block comes behind the block
            np.testing.assert_allclose(torch.cat(list(part.wanted)), wanted["kept"], atol=1e-6)
            assert "add" in ran
    assert len(ran) == len(set(ran)) == len(lockstep.int8.nodes)


def test_a_bias_or_weight_that_is_replaced_is_what_the_rest_runs_with() -> None:
    model, x = residual(), noise(8, 4)
    found = int8(model, x)
    lockstep = Lockstep(found, "forward", feeds(found, x)["forward"])
    for part in lockstep.parts():
        layer = lockstep.layers.get(part.nodes[-1].name)
        if layer is not None and layer.path == "stem":
            assert layer.bias is not None
            lockstep.values[layer.fake] = torch.zeros(4, 4)
            lockstep.values[layer.bias.name] = torch.full((4,), 0.5)
        if part.nodes[-1].name == "linear_1":
            assert part.given[0]["linear"].tolist() == [[0.5] * 4] * 8
    np.testing.assert_array_equal(model.weights["stem.weight"], residual().weights["stem.weight"])


def test_nodes_of_a_block_are_neighbours_and_what_waits_for_them_comes_behind() -> None:
    graph = torch.fx.Graph()
    a = graph.placeholder("a")
    b, c = graph.call_function(torch.relu, (a,)), graph.call_function(torch.tanh, (a,))
    d = graph.call_function(torch.neg, (b,))        # reads an inner value
    e = graph.call_function(torch.exp, (d,))
    f = graph.call_function(torch.add, (b, a))
    order = scheduled([b, c, d, e, f], [[b, f]])
    assert order == [[c], [b, f], [d], [e]]
    assert scheduled([b, c, d, e, f], []) == [[b], [c], [d], [e], [f]]


def test_layers_whose_weights_something_else_reads_are_listed_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.own, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.bias = self.own.bias

        def one(self, x: Tensor) -> Tensor:
            return self.own(self.shared(x))

        def two(self, x: Tensor) -> Tensor:
            return self.other(self.shared(x))

    model = export_model(Shared().eval(), name="shared", example={"x": noise(2, 4)},
                         graphs={"one": Graph("one", ("x",)), "two": Graph("two", ("x",))})  # fmt: skip
    found = quantize(model, data_of(model, noise(8, 4)), scheme="x86-vnni").model
    for graph, path in (("one", "own"), ("two", "other")):
        lockstep = Lockstep(found, graph, [{"x": noise(8, 4)}])
        assert lockstep.shared == ["shared"]
        (layer,) = lockstep.layers.values()
        assert (layer.path, layer.bias, layer.grid) == (path, None, WeightGrid(low=-127, high=127))


def test_layers_kept_in_float_are_none() -> None:
    model, x = residual(), noise(8, 4)
    found = int8(model, x, QuantizeConfig(keep_float=("up", "stem")))
    lockstep = Lockstep(found, "forward", feeds(found, x)["forward"])
    assert [layer.path for layer in lockstep.layers.values()] == ["one", "down", "head"]


def test_what_changes_its_input_in_place_leaves_what_is_kept() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.one(x)
            seen += 1
            return self.two(torch.relu_(seen))

    model, x = model_of(InPlace(), 4), noise(8, 4)
    found = int8(model, x)
    lockstep = Lockstep(found, "forward", feeds(found, x)["forward"])
    for part in lockstep.parts():
        first, second = part.run(0), part.run(0)
        if isinstance(first, Tensor):
            np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, run_program(convert(found), {"x": x})["output"])


def test_the_bytes_that_are_held_at_once() -> None:
    """Of ``x``, relu(x) and their sum, all of 8 samples of 4 numbers, three are there at once; behind it two are."""
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(torch.tanh(torch.relu(x) + x))

    model = model_of(Sums(), 4)
    assert peak_bytes(model.graph, {"x": noise(8, 4)}) == 3 * 8 * 4 * 4
    assert peak_bytes(model.graph, {"x": noise(16, 4)}) == 3 * 16 * 4 * 4
