"""A table of tiny ONNX models with answers worked out by hand or by plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.spec import Dim, TensorSpec

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BATCH = Dim("batch", 1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, one feed, and the outputs expected of it."""

    name: str
    build: Callable[[], onnx.ModelProto]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feed: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    affine: bool = False                # activations with a zero point


def f32(name: str, *shape: int | Dim) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto],
          **constants: np.ndarray | np.generic) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def add() -> onnx.ModelProto:
    """Two inputs, two outputs: the sum, and the difference."""
    results = {"Add": "sum", "Sub": "difference"}
    nodes = [helper.make_node(operator, ["left", "right"], [name]) for operator, name in results.items()]
    return model(nodes, [value("left", FLOAT, 2, 3), value("right", FLOAT, 2, 3)],
                 [value("sum", FLOAT, 2, 3), value("difference", FLOAT, 2, 3)])


def matmul() -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
                 [value("x", FLOAT, "batch", 2)], [value("y", FLOAT, "batch", 3)],
                 w=np.array([[1, 2, 3], [4, 5, 6]], np.float32))


def gather() -> onnx.ModelProto:
    """An embedding: row ``i`` of the table is ``(i, 10 i)``."""
    return model([helper.make_node("Gather", ["table", "tokens"], ["rows"])],
                 [value("tokens", INT64, "batch", 3)], [value("rows", FLOAT, "batch", 3, 2)],
                 table=np.stack([np.arange(5), 10 * np.arange(5)], axis=1).astype(np.float32))


ZERO = np.uint8(100)
QDQ_WEIGHTS = (np.arange(16 * 8).reshape(16, 8) % 11 - 5).astype(np.int8)
QDQ_X = (np.arange(2 * 16).reshape(2, 16) % 9 - 4).astype(np.float32) * 0.37


def qdq_symmetric() -> onnx.ModelProto:
    """s8 symmetric activations (scale 1/8) and weights (scale 1/4), as TensorRT and ARM64 take them."""
    return qdq_matmul(np.int8(0))


def qdq_matmul(zero: np.uint8 | np.int8 = ZERO) -> onnx.ModelProto:
    """u8 affine activations (scale 1/8, zero point 100), s8 symmetric weights (scale 1/4)."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    return model(nodes, [value("x", FLOAT, "batch", 16)], [value("y", FLOAT, "batch", 8)],
                 xs=np.float32(0.125), xz=zero, w=QDQ_WEIGHTS,
                 ws=np.full(8, 0.25, np.float32), wz=np.zeros(8, np.int8))


CASES = (
    Case(
        name="add", build=add,
        inputs=(f32("left", 2, 3), f32("right", 2, 3)), outputs=(f32("sum", 2, 3), f32("difference", 2, 3)),
        feed={"left": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "right": np.full((2, 3), 0.5, np.float32)},
        expected={"sum": np.array([[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]], np.float32),
                  "difference": np.array([[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]], np.float32)},
    ),
    Case(
        name="matmul", build=matmul, inputs=(f32("x", BATCH, 2),), outputs=(f32("y", BATCH, 3),),
        feed={"x": np.array([[1, 1], [2, -1]], np.float32)},
        expected={"y": np.array([[5, 7, 9], [-2, -1, 0]], np.float32)},
    ),
    Case(
        name="gather", build=gather,
        inputs=(TensorSpec(name="tokens", dtype="int64", shape=(BATCH, 3), modality="text"),),
        outputs=(f32("rows", BATCH, 3, 2),),
        feed={"tokens": np.array([[0, 4, 2]])},
        expected={"rows": np.array([[[0, 0], [4, 40], [2, 20]]], np.float32)},
    ),
    Case(
        name="qdq_symmetric", build=qdq_symmetric, inputs=(f32("x", BATCH, 16),), outputs=(f32("y", BATCH, 8),),
        feed={"x": QDQ_X},
        expected={"y": np.clip(np.rint(QDQ_X * 8), -128, 127).astype(np.float32)
                  * np.float32(0.125) @ (QDQ_WEIGHTS.astype(np.float32) * np.float32(0.25))},
    ),
    Case(
        name="qdq_matmul", affine=True, build=qdq_matmul, inputs=(f32("x", BATCH, 16),), outputs=(f32("y", BATCH, 8),),
        feed={"x": QDQ_X},
        expected={"y": (np.clip(np.rint(QDQ_X * 8) + 100, 0, 255).astype(np.float32) - 100)
                  * np.float32(0.125) @ (QDQ_WEIGHTS.astype(np.float32) * np.float32(0.25))},
    ),
)
BY_NAME = {case.name: case for case in CASES}
