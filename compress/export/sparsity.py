"""The weights of an ONNX file in which two of every four neighbouring inputs are zero: TensorRT's 2:4 pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

OF, ZEROS = 4, 2


def sparse_weights(onnx: bytes) -> tuple[int, int]:
    """How many weights of matrix products and convolutions are in the pattern, and of how many that could be.

    Of a quantized weight its integers count. The inputs are the axis that is summed over.
    """
    import onnx_ir as ir
    from onnx import load_model_from_string

    found = [in_pattern(weight, axis) for node in ir.from_proto(load_model_from_string(onnx)).graph
             if (weight_and_axis := _weight(node)) is not None for weight, axis in [weight_and_axis]
             if weight.shape[axis] % OF == 0]
    return sum(found), len(found)


def in_pattern(weight: np.ndarray, axis: int) -> bool:
    """Whether no four neighbours along ``axis`` have more than two values that are not zero."""
    fours = np.moveaxis(weight, axis, -1).reshape(-1, OF)
    return bool(((fours != 0).sum(-1) <= OF - ZEROS).all())


def _weight(node: ir.Node) -> tuple[np.ndarray, int] | None:
    """What a node multiplies with, where that is a constant, and the axis of it that is summed over."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    groups, turned = node.attributes.get("group"), node.attributes.get("transB")
    if groups is not None and groups.as_int() != 1:
        return None
    weight = _constant(node.inputs[1])
    if weight is None or weight.ndim < 2:
        return None
    if node.op_type == "Conv" or (turned is not None and turned.as_int()):
        return weight, 1
    return weight, weight.ndim - 2


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, before they are dequantized or cast; transposed where the graph does that."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    producer = value.producer()
    if producer is None or producer.op_type not in ("DequantizeLinear", "Cast", "Transpose", "Identity"):
        return None
    source = _constant(producer.inputs[0])
    if source is None or producer.op_type != "Transpose":
        return source
    order = producer.attributes.get("perm")
    return source.transpose(None if order is None else list(order.as_ints()))
