"""Tiny ONNX models with known answers for the builders' tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 2, 8)
FEATURES, CLASSES = 16, 8
INPUTS = (TensorSpec(name="x", dtype="float32", shape=(BATCH, FEATURES)),)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=(BATCH, CLASSES)),)

_RNG = np.random.default_rng(0)
WEIGHT = _RNG.integers(-127, 128, (FEATURES, CLASSES), dtype=np.int8)
BIAS = _RNG.standard_normal(CLASSES).astype(np.float32)
INPUT_SCALE, WEIGHT_SCALE = np.float32(0.05), np.float32(0.01)


def quantized(path: Path, zero_point: int = 0, activations: type[np.generic] = np.int8) -> Path:
    """relu(x @ w + b) with x and w quantized: QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear."""
    constants = {
        "x_scale": INPUT_SCALE,
        "x_zero": activations(zero_point),
        "w_int8": WEIGHT,
        "w_scale": np.full(CLASSES, WEIGHT_SCALE),
        "w_zero": np.zeros(CLASSES, np.int8),
        "b": BIAS,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int8"], name="x_quantize"),
        helper.make_node("DequantizeLinear", ["x_int8", "x_scale", "x_zero"], ["x_real"], name="x_dequantize"),
        helper.make_node("DequantizeLinear", ["w_int8", "w_scale", "w_zero"], ["w"], name="w_dequantize", axis=1),
        helper.make_node("MatMul", ["x_real", "w"], ["m"], name="matmul"),
        helper.make_node("Add", ["m", "b"], ["a"], name="bias"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    return save(path, nodes, constants)


def quantized_answer(x: np.ndarray, zero_point: int = 0, low: int = -128, high: int = 127) -> np.ndarray:
    """What ``quantized`` computes, from the definition of its operators."""
    steps = np.clip(np.round(x / INPUT_SCALE) + zero_point, low, high) - zero_point
    return np.maximum((steps * INPUT_SCALE) @ (WEIGHT * WEIGHT_SCALE) + BIAS, 0).astype(np.float32)


def floating(path: Path, *, opset: int = 20) -> Path:
    """relu(x @ w + b) in float32."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="matmul"),
        helper.make_node("Add", ["m", "b"], ["a"], name="bias"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    constants = {"w": (WEIGHT * WEIGHT_SCALE).astype(np.float32), "b": BIAS}
    return save(path, nodes, constants, opset=opset)


def floating_answer(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ (WEIGHT * WEIGHT_SCALE) + BIAS, 0).astype(np.float32)


def save(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.generic | np.ndarray], *, opset: int = 20
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def branching(path: Path) -> Path:
    """If and Loop: y is x's first CLASSES columns, doubled three times where x's sum is positive, else negated first.

    OpenVINO gives the operations in their bodies names of its own.
    """
    value = helper.make_tensor_value_info
    full, scalar = ["batch", FEATURES], TensorProto.BOOL
    same = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "then", [], [value("same", TensorProto.FLOAT, full)]
    )
    negative = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["negative"])], "else", [], [value("negative", TensorProto.FLOAT, full)]
    )
    double = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["z", "z"], ["doubled"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", scalar, []), value("z", TensorProto.FLOAT, full)],
        [value("go_on", scalar, []), value("doubled", TensorProto.FLOAT, full)],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["signed"], then_branch=same, else_branch=negative),
        helper.make_node("Loop", ["times", "", "signed"], ["looped"], body=double),
        helper.make_node("Slice", ["looped", "start", "stop", "axis"], ["y"]),
    ]
    constants = {
        "zero": np.float32(0), "times": np.int64(3), "start": np.array([0]), "stop": np.array([CLASSES]),
        "axis": np.array([1]),
    }  # fmt: skip
    return save(path, nodes, constants)
