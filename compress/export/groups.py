"""Weights in groups as ONNX: four-bit constants that a DequantizeLinear with a block size reads, new in opset 21."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import onnx_ir as ir
from onnxscript import opset21
from torch.export import ExportedProgram

from compress.quantize.groups import dequantize_groups

FIRST_OPSET = 21
_OPERATOR = dequantize_groups._opoverload
op: Any = opset21


def has_groups(program: ExportedProgram) -> bool:
    """Whether ``program`` has weights in groups."""
    return any(node.target == _OPERATOR for node in program.graph.nodes)


def _dequantize(integers: Any, steps: Any, zeros: Any, group: int) -> Any:
    return op.DequantizeLinear(integers, steps, zeros, axis=1, block_size=group)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {_OPERATOR: _dequantize}
"""For ``torch.onnx.export``'s ``custom_translation_table``."""


def pack_groups(model: ir.Model) -> None:
    """Store the integers and zero points of weights in groups in four bits: uint4 with zero points, int4 without."""
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and "block_size" in node.attributes:
            integers, zeros = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
            kind = ir.DataType.INT4 if zeros is None else ir.DataType.UINT4
            for value in (integers, zeros):
                if value is not None and value.const_value is not None and value.const_value.dtype != kind:
                    array = value.const_value.numpy().astype(getattr(ml_dtypes, kind.name.lower()))
                    value.const_value = ir.tensor(array, dtype=kind, name=value.name)
                    value.type = ir.TensorType(kind)
