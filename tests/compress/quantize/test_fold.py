"""What is folded before ranges are chosen: the function stays, and what was computed is a weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from calibration import open_set
from compress.model import Graph, Input, Model
from compress.program import model_runner, run_program
from compress.quantize import quantize
from compress.quantize.annotate import find_operators
from compress.quantize.fold import fold
from compress.quantize.prepare import convert
from compress.saving import export_model
from tests.compress.quantize.networks import Normed, TwoReaders, make, samples


def test_a_folded_batch_norm_leaves_the_function() -> None:
    model = make(Normed)
    folded = fold(model)
    called = [str(node.target) for node in folded.graph.program.graph.nodes if node.op == "call_function"]
    assert not [target for target in called if "norm" in target]
    (feed,) = samples(model, 8).batches(8)
    np.testing.assert_allclose(run_program(folded, feed)["output"], run_program(model, feed)["output"], atol=1e-6)
    # y = (conv(x) - mean) * weight / sqrt(var + eps) + bias
    w = {name: value.detach().numpy() for name, value in model.weights.items()}
    factor = w["norm.weight"] / np.sqrt(w["norm.running_var"] + 1e-5)
    np.testing.assert_allclose(
        folded.weights["conv.weight"].numpy(), w["conv.weight"] * factor[:, None, None, None], rtol=1e-5
    )
    assert fold(folded) is folded


class Kept(nn.Module):
    """A convolution in front of a batch norm, as ``how`` has it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.other = how, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm, self.second = (nn.BatchNorm2d(4, track_running_stats=how != "no statistics") for _ in range(2))
        for norm in (self.norm, self.second):
            if how != "no statistics":
                norm.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
                norm.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.how == "a skip":
            return made + self.other(torch.relu(self.norm(made)))
        if self.how == "two norms":
            return self.other(torch.relu(self.norm(made)) + self.second(made))
        if self.how == "run twice":
            return self.other(torch.relu(self.norm(made)) + self.second(self.conv(x * 2)))
        return self.other(torch.relu(self.norm(made)))


@pytest.mark.parametrize("how", ["a skip", "two norms", "run twice", "no statistics"])
def test_a_convolution_that_something_else_reads_keeps_its_norm(how: str) -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).standard_normal((4, 3, 6, 6), np.float32)
    model = export_model(Kept(how).eval(), name="kept", example={"x": image})
    quantized = quantize(model, open_set([{"x": image}], model.inputs), scheme="x86-vnni").model
    wanted = run_program(model, {"x": image})["output"]
    np.testing.assert_allclose(run_program(fold(model), {"x": image})["output"], wanted, atol=1e-5)
    np.testing.assert_allclose(run_program(convert(quantized), {"x": image})["output"], wanted, atol=0.2)


class Writing(nn.Module):
    """Two layers, between them a write into parts of a tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        if self.how == "a buffer":
            held = torch.zeros(x.shape[0], 6)
            held[:, 1:4] = made[:, :3]
            held[:, 5] = 1
            made = held
        elif self.how == "a place":
            made[:, 0] = 5.0
        elif self.how == "a half":
            made.chunk(2, -1)[0].mul_(3)
        else:
            made.relu_()
        return self.second(made)


@pytest.mark.parametrize("how", ["a buffer", "a place", "a half", "all of it"])
def test_an_int8_layer_reads_what_was_written(how: str) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((64, 6), np.float32)
    model = export_model(Writing(how).eval(), name="writing", example={"x": x[:2]},
                         inputs={"x": Input(dims=("batch",))})  # fmt: skip
    quantized = quantize(model, open_set([{"x": x}], model.inputs), scheme="x86-vnni").model
    wanted, found = (run_program(one, {"x": x})["output"] for one in (model, convert(quantized)))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


class Looking(nn.Module):
    """Queries look at keys of their own width: torch cuts one packed weight into those of both."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.out(self.attention(x, places, places, need_weights=False)[0])

    def twice(self, x: Tensor, places: Tensor) -> Tensor:
        return 2 * self.out(self.attention(x, places, places, need_weights=False)[0])


class Normalised(nn.Module):
    """A layer whose weight has a length and a direction, and one whose weight the input makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.maker = parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.layer(x)[:, :2], self.maker(x[0]).reshape(3, 2))


def looking(**graphs: Graph) -> Model:
    torch.manual_seed(0)
    example = {"x": np.ones((2, 3, 16), np.float32), "places": np.ones((2, 5, 16), np.float32)}
    return export_model(Looking().eval(), name="looking", example=example, graphs=graphs or None)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, size, 16)).astype(np.float32) for name, size in (("x", 3), ("places", 5))}


def reasons(model: Model) -> dict[str, list[str | None]]:
    return {name: [o.float_reason for o in find_operators(graph.program.module(check_guards=False))]
            for name, graph in model.graphs.items()}  # fmt: skip


def test_the_parts_of_a_packed_weight_are_weights() -> None:
    model = looking()
    assert reasons(model) == {"forward": [None] * 4}    # quantize folds
    folded = fold(model)
    assert reasons(folded) == {"forward": [None] * 6}       # and attention's two products
    assert not any("split" in str(node.target) and "in_proj" in str(node.args)
                   for node in folded.graph.program.graph.nodes)  # fmt: skip
    found, expected = (run_program(one, arrays())["output"] for one in (folded, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    packed = model.weights["attention.in_proj_weight"]
    np.testing.assert_array_equal(folded.weights["attention.in_proj_weight_0"], packed[:16])
    np.testing.assert_array_equal(folded.weights["attention.in_proj_weight_1"], packed[16:])
    assert "attention.in_proj_weight" not in folded.weights
    assert [folded.component_of(o.path) for o in find_operators(folded.graph.program.module(check_guards=False))] == [
        "attention", "attention", "attention", "attention", "attention", "out"
    ]  # fmt: skip
    assert fold(folded) is folded


def test_they_run_in_int8() -> None:
    from calibration import open_set

    model = looking()
    quantized = quantize(model, open_set([arrays(seed) for seed in range(8)], model.inputs), scheme="x86-vnni").model
    expected = run_program(model, arrays(9))["output"]
    error = np.abs(run_program(convert(quantized), arrays(9))["output"] - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.1


def test_graphs_that_share_the_weight_share_its_parts() -> None:
    model = looking(once=Graph("forward", ()), twice=Graph("twice", ()))
    folded = fold(model)
    assert reasons(folded) == {"once": [None] * 6, "twice": [None] * 6}
    assert sorted(name for name in folded.weights if "in_proj" in name) == [
        f"attention.in_proj_{kind}_{part}" for kind in ("bias", "weight") for part in (0, 1)
    ]  # fmt: skip
    for name, value in model_runner(model)(arrays()).items():
        np.testing.assert_allclose(model_runner(folded)(arrays())[name], value, atol=1e-6)


def test_a_weight_norm_is_folded_and_a_weight_that_the_input_makes_is_not() -> None:
    torch.manual_seed(0)
    model = export_model(Normalised().eval(), name="n", example={"x": np.ones((2, 4), np.float32)})
    folded = fold(model)
    assert reasons(folded) == {"forward": [None, None, "its weight is computed at run time"]}
    feed = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    np.testing.assert_allclose(run_program(folded, feed)["output"], run_program(model, feed)["output"], atol=1e-6)


def test_a_model_with_nothing_to_fold_is_left_alone() -> None:
    model = make(TwoReaders)
    assert fold(model) is model
