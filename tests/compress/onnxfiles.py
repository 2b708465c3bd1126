"""A small classifier written as ONNX by hand: a convolution, a ReLU, and a product of matrices with a bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG_SEED = 0


def classifier(*, batch: str | int = "N", size: int = 8, channels: int = 4, classes: int = 3) -> onnx.ModelProto:
    """``image`` f32 ``(batch, 1, size, size)`` to ``scores`` f32 ``(batch, classes)``."""
    rng = np.random.default_rng(RNG_SEED)
    weights = {
        "kernel": rng.standard_normal((channels, 1, 3, 3)), "matrix": rng.standard_normal((channels, classes)),
        "bias": rng.standard_normal(classes),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["seen"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["kept"], name="relu"),
        helper.make_node("ReduceMean", ["kept", "places"], ["pooled"], name="pool", keepdims=0),
        helper.make_node("MatMul", ["pooled", "matrix"], ["product"], name="matmul"),
        helper.make_node("Add", ["product", "bias"], ["scores"], name="add"),
    ]
    graph = helper.make_graph(
        nodes, "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [*(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()),
         numpy_helper.from_array(np.array([2, 3], np.int64), "places")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def expected(proto: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """What the classifier makes of ``image``, computed here."""
    held = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in proto.graph.initializer}
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[:, 0], (3, 3), axis=(1, 2))
    seen = np.einsum("bhwij,cij->bchw", windows, held["kernel"][:, 0])
    return np.maximum(seen, 0).mean((2, 3)) @ held["matrix"] + held["bias"]


def write(path: Path, proto: onnx.ModelProto | None = None) -> Path:
    onnx.save(proto or classifier(), path)
    return path
