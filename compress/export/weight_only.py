"""Weights quantized alone as ONNX: a DequantizeLinear each, in groups with a block size, which is new in opset 21."""

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


def multiply_matrices(model: ir.Model) -> None:
    """Write the products of weights quantized alone as MatMul and Add, where the exporter has made a Gemm of them.

    ONNX Runtime runs these with compressed weights, and dequantizes those of a Gemm in every run: 36 ms in place of 0.2
    for 2048 inputs and 8192 outputs (ONNX Runtime 1.31, two threads).
    """
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_dequantized_constant(node.inputs[1]) and not _dequantizes(node.inputs[0]):
            given = {name: attribute.value for name, attribute in node.attributes.items()}
            if not given.get("transA") and given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0:
                _multiply(model.graph, node, transposed=bool(given.get("transB")))


def _multiply(graph: ir.Graph, gemm: ir.Node, *, transposed: bool) -> None:
    """Put the operators in place of ``gemm``; a transposition of the weight is left to be folded."""
    value, weight, *bias = gemm.inputs
    result = gemm.outputs[0]
    made = []
    if transposed:
        made.append(ir.node("Transpose", inputs=[weight], attributes={"perm": [1, 0]}))
        weight = made[0].outputs[0]
        weight.type = result.type
    made.append(ir.node("MatMul", inputs=[value, weight]))
    if bias:
        made[-1].outputs[0].shape, made[-1].outputs[0].type = result.shape, result.type
        made.append(ir.node("Add", inputs=[made[-1].outputs[0], *bias]))
    product = made[-1].outputs[0]
    product.name, product.shape, product.type = result.name, result.shape, result.type
    made[-1].name, result.name = gemm.name, None
    result.replace_all_uses_with(product, replace_graph_outputs=True)
    for node in made:
        node.metadata_props.update(gemm.metadata_props)     # they belong to the same module
        graph.insert_before(gemm, node)
    graph.remove(gemm, safe=True)


def _dequantizes(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_dequantized_constant(value: ir.Value | None) -> bool:
    """Whether it is a constant's, though it be another number of times transposed."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        return _is_dequantized_constant(producer.inputs[0])
    source = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None
    return source is not None and source.const_value is not None
