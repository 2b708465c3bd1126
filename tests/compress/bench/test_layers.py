"""Layer precisions, on records by hand; the names are those of ONNX Runtime 1.31 and OpenVINO 2026.4."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.bench.layers import asked_for_int8, asked_of, by_component, precisions, rows, unexpected
from compress.bench.record import ComponentRow, LayerRow
from runtimes.backends import Layer, open_engine
from runtimes.engine import write_engine
from runtimes.engineset import EngineSet
from runtimes.spec import Dim, TensorSpec


def layer(name: str, type: str, precision: str, **more: Any) -> LayerRow:
    return LayerRow(**{"name": name, "type": type, "precision": precision, "time_us": None, "graph": "g", **more})


LAYERS = [
    layer("Q0", "QuantizeLinear", "int8"),
    layer("node_linear_1", "MatMulIntegerToFloat", "int8"),
    layer("fused node_linear_2/MatMulAddFusion", "FusedGemm", "f32"),
    layer("cast", "Convert", "f32"),
    layer("output_original", "FullyConnected", "bf16", seen="kernel brgemm_avx512_bf16"),
    layer("stem", "Convolution", "int8"),
]


def test_only_arithmetic_layers_are_counted() -> None:
    assert precisions(LAYERS) == {"bf16": 1, "f32": 1, "int8": 2}


def test_layers_that_did_not_get_int8() -> None:
    asked = {"node_linear_1": "linear_1", "node_linear_2": "linear_2", "node_linear_12": "linear_12",
             "node_linear_20": "output", "node_linear": "linear", "stem": "conv"}
    assert unexpected({"g": asked}, LAYERS) == (
        "node_linear_2: FusedGemm in f32 (the backend gives no reason)",
        "node_linear_20: FullyConnected in bf16 (kernel brgemm_avx512_bf16; the backend gives no reason)")


def test_the_layers_of_several_graphs_are_told_apart() -> None:
    """A decoder's operators have the names of the encoder's, and only the encoder asks."""
    both = [*LAYERS, layer("node_linear_1", "MatMul", "f32", graph="decoder")]
    assert unexpected({"g": {"node_linear_1": "linear_1"}}, both) == ()
    assert unexpected({"decoder": {"node_linear_1": "linear_1"}}, both) == (
        "decoder: node_linear_1: MatMul in f32 (the backend gives no reason)",)


def test_what_a_model_asks_for(tmp_path: Path) -> None:
    """Both operands dequantized, or a constant weight: asked for. A float weight, or a sum: not."""
    def dequantize(name: str) -> onnx.NodeProto:
        return helper.make_node("DequantizeLinear", [name, "scale"], [f"{name}_float"], name=f"dq_{name}")

    weights = {"a": np.ones((2, 2), np.int8), "b": np.ones((2, 2), np.float32), "scale": np.float32(1)}
    nodes = [dequantize("x"), dequantize("a"),
             helper.make_node("MatMul", ["x_float", "a_float"], ["y1"], name="both"),
             helper.make_node("MatMul", ["x_float", "b"], ["y2"], name="float_weight"),
             helper.make_node("MatMul", ["y2", "a_float"], ["y3"], name="float_input"),
             helper.make_node("Add", ["x_float", "a_float"], ["y4"], name="sum")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.INT8, [2, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("y1", "y2", "y3", "y4")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert asked_for_int8(tmp_path / "model.onnx") == {"both": "y1", "float_input": "y3"}


def raw(name: str, type: str, precision: str, time_us: float | None, *nodes: str, macs: int | None = None) -> Any:
    return vars(Layer(name=name, type=type, precision=precision, time_us=time_us, nodes=nodes, macs=macs))


PROFILE = [
    raw("vision::node_conv/Bare", "Convolution", "int8", 10.0, "vision::node_conv", "text::node_add", macs=600),
    raw("vision::node_q", "FakeQuantize", "f32", 2.5, "vision::node_q"),
    raw("Reorder_3", "Reorder", "f32", 1.0, "vision::node_add", "text::node_add"),
    raw("text::node_MatMul_1 + vision::node_add", "kgen", "f32", 4.0),
    raw("attention", "Subgraph of MatMul", "bf16", 30.0, "text::node_transpose", "text::node_MatMul_2", macs=70),
    raw("convnet::node_add_1", "Add", "f32", None, "convnet::node_add_1", "vision::node_conv"),
    raw("Convert_9", "Convert", "i64", 0.5),
]


def test_layers_belong_to_components() -> None:
    """One fused across components is its arithmetic operator's, else shared; so is one that tells nothing."""
    assert [row.component for row in rows(PROFILE)] == ["vision", "vision", "shared", "shared", "text", "shared", None]


def test_components_together() -> None:
    found = by_component(rows(PROFILE))
    assert list(found) == ["text", "vision", "shared"]
    assert found["vision"] == ComponentRow(
        layers=2, time_us=12.5, precisions={"int8": 1}, times_us={"f32": 2.5, "int8": 10.0}, macs={"int8": 600})
    assert found["text"] == ComponentRow(
        layers=1, time_us=30.0, precisions={"bf16": 1}, times_us={"bf16": 30.0}, macs={"bf16": 70})
    assert (found["shared"].layers, found["shared"].time_us) == (4, 5.5)
    assert by_component(rows([raw("MatMul_1", "MatMul", "f32", 3.0)])) == {}
    untimed = by_component(rows([raw("a::b", "MatMul", "f32", None)]))["a"]
    assert (untimed.time_us, untimed.times_us) == (None, {})


def quantized(file: Path, shape: list[int | str]) -> None:
    """Two int8 MatMuls, each with a bias and a Relu, and a float head."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8), "scales": np.full(64, 0.01, np.float32),
        "zeros": np.zeros(64, np.int8), "bias": np.zeros(64, np.float32),
        "w": rng.integers(-127, 127, (64, 64)).astype(np.int8), "head": rng.normal(size=(64, 10)).astype(np.float32)}
    nodes, last = [], "x"
    for i in range(2):
        nodes += [helper.make_node("QuantizeLinear", [last, "scale", "zero"], [f"q{i}"]),
                  helper.make_node("DequantizeLinear", [f"q{i}", "scale", "zero"], [f"dq{i}"]),
                  helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], [f"dw{i}"], axis=1),
                  helper.make_node("MatMul", [f"dq{i}", f"dw{i}"], [f"m{i}"], name=f"node_MatMul_{i}"),
                  helper.make_node("Add", [f"m{i}", "bias"], [f"a{i}"]), helper.make_node("Relu", [f"a{i}"], [f"r{i}"])]
        last = f"r{i}"
    nodes.append(helper.make_node("MatMul", [last, "head"], ["output"], name="node_MatMul_2"))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, [*shape[:-1], 10])],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


def layers_of(backend: str, model: Path, folder: Path, size: tuple[int, ...]) -> list[LayerRow]:
    folder.mkdir()
    if backend == "openvino":
        openvino = pytest.importorskip("openvino")
        openvino.save_model(openvino.convert_model(model), folder / "model.xml", compress_to_fp16=False)
    else:
        shutil.copy(model, folder / "model.onnx")
    specs = [TensorSpec(name=name, dtype="float32", shape=(Dim("batch"), *size, last))
             for name, last in (("x", 64), ("output", 10))]
    engine = write_engine(
        folder, backend=backend, device="CPU", precision="int8", inputs=specs[:1], outputs=specs[1:], source="0" * 64,
        entry="model.xml" if backend == "openvino" else "model.onnx", built_with={}, state="runnable",
        options={"INFERENCE_PRECISION_HINT": "f32"} if backend == "openvino" else {})
    runner = open_engine(engine, threads=1)
    try:
        return list(rows([{"graph": "g", **vars(layer)} for layer in runner.layers()]))
    finally:
        runner.close()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_real_backends_run_what_is_asked_in_int8(backend: str, tmp_path: Path) -> None:
    quantized(tmp_path / "model.onnx", ["batch", 4, 64])
    asked = asked_for_int8(tmp_path / "model.onnx")
    found = layers_of(backend, tmp_path / "model.onnx", tmp_path / backend, (4,))
    assert asked == {"node_MatMul_0": "m0", "node_MatMul_1": "m1"}
    assert precisions(found) == {"f32": 1, "int8": 2}
    assert unexpected({"g": asked}, found) == ()
    assert unexpected({"g": {"node_MatMul_2": "output"}}, found) != ()


def test_an_engine_that_holds_its_onnx_tells_what_it_asks(tmp_path: Path) -> None:
    """An int8 OpenVINO engine has none beside it, and a float engine asks for nothing."""
    tmp_path.joinpath("ort").mkdir()
    quantized(tmp_path / "ort/model.onnx", ["batch", 4, 64])
    specs = [TensorSpec(name=name, dtype="float32", shape=(Dim("batch"), 4, last)) for name, last in
             (("x", 64), ("output", 10))]
    engine = write_engine(
        tmp_path / "ort", backend="onnxruntime", device="CPU", precision="int8", inputs=specs[:1], outputs=specs[1:],
        source="0" * 64, entry="model.onnx", built_with={}, state="runnable", options={})
    without = dataclasses.replace(engine, path=tmp_path)
    engines = {"one": engine, "float": dataclasses.replace(engine, precision="fp32"), "without": without}
    assert asked_of(EngineSet(engines=engines)) == {"one": {"node_MatMul_0": "m0", "node_MatMul_1": "m1"}}


def test_a_real_fall_back_is_seen(tmp_path: Path) -> None:
    """ONNX Runtime makes a Gemm of a two-dimensional MatMul and its bias, and runs that in float."""
    quantized(tmp_path / "model.onnx", ["batch", 64])
    found = layers_of("onnxruntime", tmp_path / "model.onnx", tmp_path / "engine", ())
    told = unexpected({"g": asked_for_int8(tmp_path / "model.onnx")}, found)
    assert len(told) == 2
    assert [line.partition("; ")[2] for line in told] == [
        "the backend gives no reason)", "an int8 Gemm takes no float bias)"]
