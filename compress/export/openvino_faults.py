"""Answers that OpenVINO's CPU plugin gets wrong in an int8 graph, and the same graph written so that it does not.

Both seen with OpenVINO 2026.4; ONNX Runtime and torch agree with each other on the same graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def avoid_faults(model: Any) -> None:
    """Rewrite an ``openvino.Model`` that has FakeQuantize or Quantize operations; what it computes stays the same."""
    from openvino import opset13 as operations

    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind in ("ReduceMax", "ReduceMin") and operation.output(0).get_element_type().is_real():
            _keep_sign(operation, operations)
        elif kind == "Add":
            _fold_bias(operation, operations)


def _keep_sign(reduce: Any, operations: Any) -> None:
    """A quantization is computed as part of the maximum before it, which then loses values below zero.

    ``max(x, the least float32)`` in between, which is ``x``, keeps the two apart.
    """
    readers = list(reduce.output(0).get_target_inputs())
    least = operations.constant(np.array(np.finfo(np.float32).min, np.float32))
    between = operations.maximum(reduce.output(0), least)
    for reader in readers:
        reader.replace_source_output(between.output(0))


def _fold_bias(add: Any, operations: Any) -> None:
    """A convolution's bias, read as ``Reshape(constant)``, is dropped in some graphs: it becomes a constant."""
    for place in add.inputs():
        reshape = place.get_source_output().get_node()
        if reshape.get_type_name() != "Reshape":
            continue
        bias, shape = reshape.input_value(0).get_node(), reshape.output(0).get_partial_shape()
        if bias.get_type_name() == "Constant" and shape.is_static:
            folded = operations.constant(bias.data.reshape(tuple(shape.to_shape())))
            place.replace_source_output(folded.output(0))
