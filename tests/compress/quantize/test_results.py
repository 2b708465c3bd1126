"""What convolutions give is quantized too, so that backends have int8 kernels for the whole of a residual network."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.export import export
from compress.export.pairs import drop_pairs
from compress.model import Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.annotate import find_operators
from compress.quantize.prepare import convert
from compress.quantize.schemes import get_scheme
from compress.saving import export_model
from compress.targets import get_target


class Block(nn.Module):
    """An inverted residual, as of MobileNetV2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand, self.project = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.depth = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)

    def forward(self, x: Tensor) -> Tensor:
        wide = nn.functional.relu6(self.depth(nn.functional.relu6(self.expand(x))))
        return x + self.project(wide)


class Residual(nn.Module):
    """A pooled stem, two blocks, a sum of two convolutions, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.short, self.long = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.pool(torch.relu(self.stem(image))))
        return self.head(torch.relu(self.short(x) + self.long(x)).mean((2, 3)))


class Ends(nn.Module):
    """Two outputs: what a convolution gives, in another shape, and what a gate makes of another's result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        gated = self.second(image)
        return self.first(image).flatten(2), nn.functional.silu(gated).mean((2, 3))


@functools.cache
def model_of(network: type[nn.Module]) -> Model:
    torch.manual_seed(0)
    return export_model(network().eval(), name="network", example={"image": np.zeros((2, 3, 16, 16), np.float32)})


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)


@functools.cache
def quantized(network: type[nn.Module], ranges: str = "percentile") -> Model:
    data = open_set([{"image": images(32)}], model_of(network).inputs, name="noise")
    config = QuantizeConfig(ranges=ranges)      # type: ignore[arg-type]
    return quantize(model_of(network), data, scheme="x86-vnni", config=config).model


def results(network: type[nn.Module], keep_float: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, str], ...]]:
    module = model_of(network).graph.program.module(check_guards=False)
    return {o.path: o.results for o in find_operators(module, keep_float, get_scheme("x86-vnni"))}


def test_what_sums_and_float_operators_read_is_quantized() -> None:
    assert results(Residual) == {
        "stem": (("relu", "max_pool2d"),), "blocks.0.expand": (), "blocks.0.depth": (),
        "blocks.0.project": (("conv2d_3", "conv2d_3"), ("max_pool2d", "max_pool2d")), "blocks.1.expand": (),
        "blocks.1.depth": (), "blocks.1.project": (("conv2d_6", "conv2d_6"), ("add", "add")),
        "short": (("conv2d_7", "conv2d_7"),), "long": (("conv2d_8", "conv2d_8"),), "head": (),
    }  # fmt: skip


def test_an_output_is_left_as_it_is() -> None:
    assert results(Ends) == {"first": (), "second": (("conv2d", "conv2d"),)}


def test_a_convolution_in_float_quantizes_nothing() -> None:
    found = results(Residual, ("blocks.0.project", "short"))
    assert found["blocks.0.project"] == found["short"] == ()
    assert found["long"] == (("conv2d_8", "conv2d_8"), ("conv2d_7", "conv2d_7"))


def test_quantizing_before_a_pool_gives_what_quantizing_behind_it_does() -> None:
    model = quantized(Residual)
    held = model.quantization
    assert held is not None
    assert held.ranges["forward"]["relu"] == held.ranges["forward"]["max_pool2d"]
    steps = [node for node in convert(model).graph.program.graph.nodes
             if str(node.target) == "quantized_decomposed.quantize_per_tensor.default"]  # fmt: skip
    assert [str(step.args[0]) for step in steps[:3]] == ["image", "relu", "max_pool2d"]
    assert steps[1].args[1:] == steps[2].args[1:]


def test_ranges_of_results_are_those_of_their_own_values() -> None:
    model = quantized(Residual, "minmax")
    held = model.quantization
    assert held is not None
    seen: dict[str, Tensor] = {}
    module = model.graph.program.module(check_guards=False)
    interpreter = torch.fx.Interpreter(module)
    run = interpreter.run_node
    interpreter.run_node = lambda node: seen.setdefault(node.name, run(node))       # type: ignore[method-assign]
    with torch.no_grad():
        interpreter.run(torch.from_numpy(images(32)), enable_io_processing=False)
    for name in ("conv2d_3", "conv2d_7", "conv2d_8"):
        assert held.ranges["forward"][name] == pytest.approx((float(seen[name].min()), float(seen[name].max())))


def kinds(nodes: Iterator[onnx.NodeProto]) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in nodes)


def test_onnxruntime_runs_all_of_it_in_int8(tmp_path: Path) -> None:
    export(quantized(Residual), get_target("onnxruntime-cpu"), tmp_path / "engine")
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "engine/model.onnx", settings)
    found = kinds(onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (9, 2, 1)    # the last sum is averaged
    assert not found["Conv"]
    (answer,) = session.run(None, {"image": images(8)})
    expected = run_program(convert(quantized(Residual)), {"image": images(8)})["output"]
    np.testing.assert_allclose(answer, expected, atol=0.02 * np.abs(expected).max())


def test_openvino_makes_sums_a_part_of_convolutions(tmp_path: Path) -> None:
    export(quantized(Residual), get_target("openvino-cpu"), tmp_path / "engine")
    compiled = openvino.Core().compile_model(tmp_path / "engine/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    ran = collections.Counter((str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos
                              if str(info["layerType"].value) not in ("Const", "Input", "Output", "Reshape"))
    assert ran["Convolution", "u8"] == 9
    assert ran["Pooling", "u8"] == ran["FullyConnected", "u8"] == 1
    assert {kind for kind, _ in ran} == {"Convolution", "Pooling", "FullyConnected", "FakeQuantize", "Reorder",
                                         "Reduce"}  # fmt: skip
    assert ran["FakeQuantize", "f32"] <= 2      # of the image, and of the mean
    answer = compiled({"image": images(8)})[0]
    expected = run_program(convert(quantized(Residual)), {"image": images(8)})["output"]
    np.testing.assert_allclose(answer, expected, atol=0.03 * np.abs(expected).max())


def test_pairs_that_a_sum_needs_stay_and_others_go(tmp_path: Path) -> None:
    """Of two convolutions that are added one result stays in float, as does what only float operators read."""
    export(quantized(Residual), get_target("onnxruntime-cpu"), tmp_path / "engine")
    model = onnx.load(tmp_path / "engine/model.onnx")
    before = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    drop_pairs(model)
    after = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert set(before) - set(after) == {"max_pool2d", "conv2d_3", "conv2d_6", "conv2d_8"}
    onnx.checker.check_model(model, full_check=True)
    feed = {"image": images(8)}
    (answer,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    (expected,) = onnxruntime.InferenceSession(tmp_path / "engine/model.onnx").run(None, feed)
    np.testing.assert_allclose(answer, expected, atol=0.02 * np.abs(expected).max())


def test_a_pair_that_an_int8_operator_reads_behind_a_pool_stays(tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            return self.second(nn.functional.max_pool2d(self.first(image), 2)).tanh()

    export(quantized(Pooled), get_target("onnxruntime-cpu"), tmp_path / "engine")
    model = onnx.load(tmp_path / "engine/model.onnx")
    drop_pairs(model)
    assert [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"] == ["image", "conv2d"]
