"""Fake quantization and the int8 program: equal, deterministic, and equal to arithmetic by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.export.onnx import write_onnx
from compress.model import Dim, Input, Model
from compress.modelfile import read_model, write_model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.prepare import convert, prepare
from compress.quantize.schemes import SCHEMES, get_scheme
from compress.saving import export_model
from tests.compress.quantize.networks import Everything, Normed, Tied, TwoReaders, make, quantized, samples


def fake(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What the prepared graph computes, its weights' observers having seen the weights."""
    prepared = prepare(model, "forward")
    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    with torch.no_grad():
        (value,) = prepared(**tensors)
    return value.numpy()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_int8_program_by_hand(scheme: str) -> None:
    """Quantize activations and weights with numpy, multiply, and compare."""
    model = quantized(TwoReaders, scheme)
    assert model.quantization is not None
    grids = get_scheme(scheme)
    w = {name: value.numpy().astype(np.float64) for name, value in model.weights.items()}

    def activation(value: np.ndarray, node: str) -> np.ndarray:
        scale, zero = grids.activations.scale_and_zero_point(*model.quantization.ranges["forward"][node])
        integers = np.clip(np.round(value / scale) + zero, grids.activations.low, grids.activations.high)
        return (integers - zero) * scale

    def weight(name: str) -> np.ndarray:
        scale = np.abs(w[name]).max(1, keepdims=True) / grids.weights.high
        return np.clip(np.round(w[name] / scale), grids.weights.low, grids.weights.high) * scale

    (feed,) = samples(model, 16, seed=3).batches(16)
    x = activation(feed["x"], "x")
    sides = [x @ weight(f"{side}.weight").T + w[f"{side}.bias"] for side in ("left", "right")]
    hidden = activation(np.maximum(sides[0] + sides[1], 0), "relu")
    expected = hidden @ weight("head.weight").T + w["head.bias"]
    found = run_program(convert(model), feed)["output"]
    # torchao's weight scale spans 2 max / (high - low), which is max / high here; ties may round either way once
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.median(np.abs(found - expected)) < 1e-6


@pytest.mark.parametrize("network", [TwoReaders, Everything, Normed])
@pytest.mark.parametrize("scheme", ["x86-vnni", "tensorrt"])
def test_fake_quantization_is_the_int8_program_to_the_bit(network: type[torch.nn.Module], scheme: str) -> None:
    model = quantized(network, scheme)
    (feed,) = samples(model, 8, seed=1).batches(8)
    expected = run_program(convert(model), feed)["output"]
    np.testing.assert_array_equal(fake(model, dict(feed)), expected)
    np.testing.assert_array_equal(fake(model, dict(feed)), expected)
    assert np.abs(expected - run_program(dataclasses.replace(model, quantization=None), feed)["output"]).max() > 0


def test_weights_are_integers_of_the_scheme() -> None:
    for scheme in ("x86-vnni", "x86"):
        program = convert(quantized(Everything, scheme)).graph.program
        integers = [t for t in (*program.state_dict.values(), *program.constants.values()) if t.dtype == torch.int8]
        assert len(integers) == 6
        assert max(int(t.abs().max()) for t in integers) == get_scheme(scheme).weights.high


def test_a_float_model_cannot_be_prepared_or_converted() -> None:
    model = make(TwoReaders)
    for function in (lambda: prepare(model, "forward"), lambda: convert(model)):
        with pytest.raises(CompressError, match="model 'TwoReaders' is not quantized: run compress quantize first"):
            function()


def test_a_missing_range_is_named() -> None:
    model = quantized(TwoReaders)
    assert model.quantization is not None
    ranges = {"forward": {"x": (0.0, 1.0)}}
    broken = dataclasses.replace(model, quantization=dataclasses.replace(model.quantization, ranges=ranges))
    with pytest.raises(CompressError, match="lacks a range of 'head': quantize it again"):
        prepare(broken, "forward")


def test_tied_weights_stay_one_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = export_model(Tied(), name="tied", example={"tokens": np.zeros((2, 3), np.int64)})
    tokens = np.random.default_rng(0).integers(0, 10, (6, 3))
    data = open_set([{"tokens": tokens}], model.inputs, name="words")
    result = quantize(model, data, scheme="x86-vnni")
    assert [(o["path"], o["precision"]) for o in result.operators] == [("table", "float"), ("words", "int8")]
    found = run_program(convert(result.model), {"tokens": tokens})["output"]
    table = model.weights["table.weight"].numpy()
    # a step of the weights and half one of the activations, each times four products
    np.testing.assert_allclose(found, table[tokens] @ table.T, atol=4 * 3 * (3 / 254 + 6 / 510))
    write_model(result.model, tmp_path / "tied.pt")
    read = read_model(tmp_path / "tied.pt")
    assert read.weights["words.weight"].data_ptr() == read.weights["table.weight"].data_ptr()
    np.testing.assert_array_equal(run_program(convert(read), {"tokens": tokens})["output"], found)


def test_kept_float_layers_have_no_quantizer() -> None:
    model = make(Everything)
    config = QuantizeConfig(keep_float=("head*",))
    program = convert(quantize(model, samples(model), scheme="x86-vnni", config=config).model).graph.program
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("dequantize_per_channel" in target for target in targets) == 4
    assert sum("quantized_decomposed.quantize_per_tensor" in target for target in targets) == 6     # two results


class Pooled(nn.Module):
    """A layer reads a view whose steps depend on half of a dynamic size."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sound: Tensor) -> Tensor:
        seen = self.layer(nn.functional.max_pool2d(sound, 2).permute(0, 3, 1, 2).flatten(2))
        return seen[0].mean(1) if isinstance(seen, tuple) else seen.mean(1)


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.LSTM(8, 4, batch_first=True)])
def test_a_view_with_a_dynamic_size_is_quantized(tmp_path: Path, layer: nn.Module) -> None:
    sound = np.random.default_rng(0).standard_normal((16, 2, 8, 20)).astype(np.float32)
    inputs = {"sound": Input(modality="audio", dims=("batch", None, None, Dim("time", 8, 20, 64)))}
    model = export_model(Pooled(layer), name="pooled", example={"sound": sound[:2]}, inputs=inputs)
    converted = convert(quantize(model, open_set([{"sound": sound}], model.inputs), scheme="x86-vnni").model)
    for length in (8, 11, 20):
        feed = {"sound": sound[:3, :, :, :length]}
        expected = run_program(model, feed)["output"]
        np.testing.assert_allclose(run_program(converted, feed)["output"], expected, atol=0.05 * np.abs(expected).max())
    path = write_onnx(converted.graph, tmp_path / "model.onnx")
    assert "Identity" not in {node.op_type for node in onnx.load(path).graph.node}
