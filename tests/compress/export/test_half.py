"""float16 files: run by ONNX Runtime, whose kernels for float16 are casts around float32, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compress.errors import CompressError
from compress.export.half import to_half
from tests.compress.export import tiny_models as tiny

X = np.random.default_rng(1).standard_normal((4, tiny.FEATURES)).astype(np.float32)


def halved(path: Path) -> onnx.ModelProto:
    model = ir.load(path)
    to_half(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["x", "y"]
    return np.asarray(session.run(None, {"x": x})[0])


def types(model: onnx.ModelProto) -> set[str]:
    return {TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}


def test_a_float_model(tmp_path: Path) -> None:
    model = halved(tiny.floating(tmp_path / "f.onnx"))
    assert types(model) == {"FLOAT16"}
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    found = run(model)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny.floating_answer(X), atol=0.02)


def test_a_quantized_model_keeps_its_integers(tmp_path: Path) -> None:
    model = halved(tiny.quantized(tmp_path / "q.onnx"))
    assert types(model) == {"INT8", "FLOAT16"}
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear"), kinds.count("Cast")) == (1, 2, 2)
    np.testing.assert_allclose(run(model), tiny.quantized_answer(X), atol=0.06)


def test_scales_that_float16_cannot_hold_stay_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "WEIGHT_SCALE", np.float32(1.5e-7))  # float16 knows 1.19e-7 and 1.79e-7
    model = halved(tiny.quantized(tmp_path / "q.onnx"))
    assert types(model) == {"INT8", "FLOAT16", "FLOAT"}
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == "w_scale"]
    assert weights.data_type == TensorProto.FLOAT


def test_norms_and_softmaxes_compute_in_float32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "mask"], ["a"], name="masked"),
        helper.make_node("Softmax", ["a"], ["y"], name="softmax"),
    ]
    mask = np.zeros(tiny.CLASSES, np.float32)
    mask[3] = np.finfo(np.float32).min
    weight = (tiny.WEIGHT * tiny.WEIGHT_SCALE).astype(np.float32)
    gain = np.ones(tiny.FEATURES, np.float32)
    model = halved(tiny.save(tmp_path / "n.onnx", nodes, {"g": gain, "w": weight, "mask": mask}))
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2  # to float16 after the norm, back before the softmax; x itself needs none
    x = 3000 * X  # whose squares are beyond float16
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    scores = np.exp(normal @ weight + np.where(mask < 0, -np.inf, 0))
    np.testing.assert_allclose(run(model, x), scores / scores.sum(-1, keepdims=True), atol=0.005)


def test_a_cast_to_float_becomes_one_to_float16(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["p"]),
        helper.make_node("Cast", ["p"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    weight = np.ones((tiny.FEATURES, tiny.CLASSES), np.float32)
    model = halved(tiny.save(tmp_path / "c.onnx", nodes, {"zero": np.float32(0), "w": weight}))
    assert "FLOAT" not in types(model)
    np.testing.assert_array_equal(run(model), np.repeat((X > 0).sum(-1, keepdims=True), tiny.CLASSES, axis=1))


def test_control_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="a model with If, Loop or Scan cannot be written as fp16: ask for int8"):
        to_half(ir.load(tiny.branching(tmp_path / "b.onnx")))
