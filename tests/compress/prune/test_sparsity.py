"""2:4 sparsity: which weights go, which layers have it, and that it survives what comes after."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import compress
from calibration import CalibrationSet, open_set
from compress.errors import CompressError
from compress.export import export_onnx
from compress.export.sparsity import sparse_weights
from compress.model import Graph, Model
from compress.prune import PruneConfig, prune
from compress.prune.sparsity import is_sparse, kept, make_sparse, masked, sparse_layers
from compress.saving import export_model
from compress.targets import get_target
from compress.weights import with_weights


def test_the_two_largest_of_every_four_stay() -> None:
    score = torch.tensor([[4.0, 1, 3, 2, 0, 0, 0, 0], [1, 2, 3, 4, 9, 8, 7, 6]])
    assert kept(score).tolist() == [[1, 0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]]
    convolution = torch.arange(8.0).reshape(1, 4, 1, 2)      # at each place of its own: of inputs 0 to 3 the last two
    assert kept(convolution).flatten(2).tolist() == [[[0, 0], [0, 0], [1, 1], [1, 1]]]


def test_is_sparse() -> None:
    assert is_sparse(torch.tensor([[1.0, 0, 0, 2, 0, 0, 3, 4]]))
    assert not is_sparse(torch.tensor([[1.0, 0, 1, 2]]))
    assert not is_sparse(torch.zeros(4, 6))                  # 6 inputs are no whole fours
    assert not is_sparse(torch.zeros(4))


def test_importance_is_the_weight_times_what_it_reads(calls: dict[str, Graph]) -> None:
    module = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[3.0, 2.0, -1.0, 1.0], [1.0, -1.0, 1.0, 1.5]]))
    x = np.array([[1, 1, 10, 0], [1, 1, 0, 3]], np.float32)  # norms 1.41, 1.41, 10 and 3
    make_sparse(module, ["0"], calls, lambda size: [{"forward": [{"input": x}]}], 2)
    assert module[0].weight.tolist() == [[3.0, 0.0, -1.0, 0.0], [0.0, 0.0, 1.0, 1.5]]


def test_which_layers(networks: ModuleType) -> None:
    assert sparse_layers(networks.Convolutions()) == ["two", "last"]      # of one input channel there are no fours
    assert sparse_layers(networks.Separable()) == ["two", "last"]         # not the depthwise, nor the transposed
    assert "head" in sparse_layers(networks.Tower())
    assert "head" not in sparse_layers(networks.Tower(tied=True))         # whose weight is the table
    assert sparse_layers(networks.Block(), ["attention", "up"]) == ["down"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.head = (nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 32), nn.Linear(32, 8),
                                                     nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.enter(x).relu().mean((2, 3))
        return self.head(y + self.down(self.up(y).relu()))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return export_model(Net().eval(), name="net", example={"x": np.zeros((2, 4, 6, 6), np.float32)},
                        labels={"output": ("a", "b", "c")})


@pytest.fixture(scope="module")
def data(model: Model) -> CalibrationSet:
    generator = np.random.default_rng(0)
    return open_set([{"x": generator.standard_normal((64, 4, 6, 6)).astype(np.float32)}], model.inputs, name="noise")


WEIGHTS = {"enter.weight", "up.weight", "down.weight", "head.weight"}


@pytest.fixture(scope="module")
def sparse(model: Model, data: CalibrationSet) -> Model:
    before = {name: value.clone() for name, value in model.weights.items()}
    result = prune(model, data, PruneConfig(sparsity="2:4"))
    assert all(torch.equal(before[name], value) for name, value in model.weights.items())
    assert (result.macs_after, result.groups) == (result.macs_before, ())      # nothing else was asked for
    assert result.to_json()["sparse"] == sorted(WEIGHTS)
    return result.model


def followed(model: Model) -> set[str]:
    return {name for name in model.weights if is_sparse(model.weights[name])}


def test_every_layer_that_can_has_the_pattern(model: Model, sparse: Model) -> None:
    assert followed(model) == set()
    assert followed(sparse) == WEIGHTS == set(sparse.channels["sparse"])
    for name in WEIGHTS:                                     # what is left is as it was
        left = sparse.weights[name] != 0
        assert float(left.float().mean()) == 0.5
        assert torch.equal(sparse.weights[name][left], model.weights[name][left])


def test_together_with_widths_and_in_what_is_left_of_them(model: Model, data: CalibrationSet) -> None:
    result = prune(model, data, PruneConfig(sparsity="2:4", params=0.7, protect=("head",)))
    assert result.model.weights["up.weight"].shape[0] < 32
    assert followed(result.model) == WEIGHTS - {"head.weight"}
    # pruned again, the fours are others: the pattern is gone unless it is asked for again
    again = prune(result.model, data, PruneConfig(params=0.8, importance="magnitude"))
    assert "sparse" not in again.model.channels


@pytest.mark.slow
def test_distillation_and_every_way_to_quantize_keep_it(model: Model, sparse: Model, data: CalibrationSet) -> None:
    config = compress.DistillConfig(epochs=2, batch_size=16, learning_rate=1e-2)
    trained = compress.distill(sparse, model, data, config=config).model
    assert followed(trained) == WEIGHTS
    zeros = {name: sparse.weights[name] == 0 for name in WEIGHTS}
    assert all(torch.equal(trained.weights[name] == 0, zeros[name]) for name in WEIGHTS)
    assert any(not torch.equal(trained.weights[name], sparse.weights[name]) for name in WEIGHTS)
    for settings in ({}, {"rounding": "gptq"}, {"rounding": "learned"}, {"equalize": True}):
        how = compress.QuantizeConfig(**settings)  # type: ignore[arg-type]
        quantized = compress.quantize(trained, data, config=how, scheme="tensorrt").model
        assert followed(quantized) == WEIGHTS, settings
        aware = compress.distill(quantized, model, data, config=config).model
        assert followed(aware) == WEIGHTS, settings


@pytest.mark.slow
def test_the_integers_of_the_onnx_file_have_it(sparse: Model, data: CalibrationSet, tmp_path: Path) -> None:
    quantized = compress.quantize(sparse, data, scheme="tensorrt").model
    onnx = export_onnx(quantized, get_target("rtx"), tmp_path / "int8.onnx")
    assert sparse_weights(onnx.read_bytes()) == (4, 4)
    assert sparse_weights(export_onnx(sparse, get_target("rtx"), tmp_path / "float.onnx").read_bytes()) == (4, 4)


def test_other_weights_keep_the_zeros(sparse: Model) -> None:
    changed = with_weights(sparse, {name: value + 1.0 for name, value in sparse.weights.items()})
    assert followed(changed) == WEIGHTS
    assert torch.equal(changed.weights["up.bias"], sparse.weights["up.bias"] + 1.0)
    assert masked(sparse.weights, ["gone"], {"gone": torch.ones(2)})["gone"].tolist() == [1, 1]


@pytest.mark.parametrize(("settings", "message"), [
    ({"sparsity": "1:4"}, "sparsity='1:4' is unknown: give 2:4"),
    ({"sparsity": "2:4", "target": "openvino-cpu"},
     "sparsity=2:4 is of use on TensorRT alone, and 'openvino-cpu' runs on openvino: it would cost accuracy and"),
])
def test_what_would_gain_nothing_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        PruneConfig(**settings).check_sparsity()  # type: ignore[arg-type]


def test_a_model_without_whole_fours_is_refused(data: CalibrationSet) -> None:
    odd = export_model(nn.Sequential(nn.Linear(3, 3)), name="odd", example={"input": np.zeros((2, 3), np.float32)})
    x = open_set([{"input": np.zeros((4, 3), np.float32)}], odd.inputs, name="zeros")
    with pytest.raises(CompressError, match="model 'odd' has no weight of whole fours of inputs"):
        prune(odd, x, PruneConfig(sparsity="2:4"))
