"""Write a program as ONNX, the interchange every engine is built from; int8 as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch

from compress.errors import CompressError
from compress.export.attention import TRANSLATIONS as ATTENTION
from compress.export.components import component_of_nodes, component_prefix
from compress.export.decomposed import decomposed
from compress.export.onnxdata import onnx_parts, size_of, write_parts
from compress.export.recurrent import TRANSLATIONS, fold_recurrent_weights
from compress.export.tables import gather_integers
from compress.export.weight_only import FIRST_OPSET, has_groups, multiply_matrices, pack_groups
from compress.export.weight_only import TRANSLATIONS as GROUPS
from compress.model import ProgramGraph

LARGEST = 1_800_000_000  # bytes: protobuf's own limit is 2 GiB


def write_onnx(
    graph: ProgramGraph, path: Path, *, opset: int = 20, component_of: Callable[[str], str] | None = None
) -> Path:
    """Write one graph to ``path`` with the names and the dynamic dimensions of its specs.

    Stack traces, source paths and module names that the exporter embeds are left out: they would leak the author's
    source, and change the digest from checkout to checkout. Of where a node came from its name tells the component,
    ``image_encoder::node_linear_1``, where ``component_of`` (a module path's component) is given. Weights' transposes
    and dead casts are folded so that each int8 constant reaches its MatMul, Gemm or Conv through one DequantizeLinear,
    and biases are written so that ONNX Runtime runs those layers in int8.

    Raises:
        CompressError: if torch's exporter refuses the program; names the first operator it has no translation for.
    """
    names = [spec.name for spec in graph.inputs]
    if has_groups(graph.program):
        opset = max(opset, FIRST_OPSET)
    translations = {**TRANSLATIONS, **GROUPS, **ATTENTION}
    try:
        with _quiet():
            exported = torch.onnx.export(
                decomposed(graph.program, translations), dynamo=True, opset_version=opset, input_names=names,
                output_names=[spec.name for spec in graph.outputs], optimize=True, verbose=False,
                custom_translation_table=translations,
            )  # fmt: skip
    except Exception as error:  # the exporter wraps whatever went wrong in its own hierarchy
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        line = next((part for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
        raise CompressError(f"torch cannot write this model as ONNX opset {opset}: {line[:300]}") from error
    assert exported is not None
    model = exported.model
    _name_dimensions(model, graph)
    _keep_names_apart(model)
    fold_recurrent_weights(model)
    multiply_matrices(model)
    fold_weight_transposes(model)
    gather_integers(model)
    pack_groups(model)
    subtract_biases(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    owners = None if component_of is None else component_of_nodes(model, component_of)
    strip_metadata(model)
    name_nodes(model, owners)
    parts = onnx_parts(model)
    if size_of(parts) > LARGEST:
        raise CompressError(
            f"the ONNX of this graph would be {size_of(parts)} bytes: this release writes at most {LARGEST}"
        )
    write_parts(parts, path)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and prints on every run about its own internals; its failures are exceptions all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _name_dimensions(model: ir.Model, graph: ProgramGraph) -> None:
    for values, specs in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.shape = ir.Shape([size if isinstance(size, int) else size.name for size in spec.shape])


def _keep_names_apart(model: ir.Model) -> None:
    """Rename what inside has the name of an input or an output: the exporter gives those the specs' names unlooked."""
    ends = (*model.graph.inputs, *model.graph.outputs)
    names = {value.name for value in ends}
    inside = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    for value in inside:
        if value.name in names and not any(value is end for end in ends):
            value.name = f"{value.name}_inside"


def fold_weight_transposes(model: ir.Model) -> None:
    """``Transpose(DequantizeLinear(w))`` of a constant becomes ``DequantizeLinear(w transposed)``."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
            continue
        source = node.inputs[0]
        dequantize = source.producer() if source is not None else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        weight = dequantize.inputs[0]
        if weight is None or weight.const_value is None:
            continue
        order = _attribute(node, "perm", list(reversed(range(len(weight.const_value.shape)))))
        _replace_by_transposed(model.graph, node, dequantize, order)


def _replace_by_transposed(graph: ir.Graph, node: ir.Node, dequantize: ir.Node, order: Sequence[int]) -> None:
    weight, *parameters = dequantize.inputs
    assert weight is not None
    assert weight.const_value is not None
    held = _transposed(graph, weight, order)
    grouped = [value if value is None or value.const_value is None or value.const_value.shape.rank() < 2
               else _transposed(graph, value, order) for value in parameters]  # fmt: skip
    axis = ir.AttrInt64("axis", list(order).index(_attribute(dequantize, "axis", 1)))
    folded = ir.node(
        "DequantizeLinear", inputs=[held, *grouped], attributes={**dequantize.attributes, "axis": axis}
    )
    folded.outputs[0].shape, folded.outputs[0].type = held.shape, node.outputs[0].type
    graph.insert_before(node, folded)
    node.outputs[0].replace_all_uses_with(folded.outputs[0])
    graph.remove(node, safe=True)


def _transposed(graph: ir.Graph, constant: ir.Value, order: Sequence[int]) -> ir.Value:
    name = f"{constant.name}_transposed"
    if name not in graph.initializers:
        assert constant.const_value is not None
        array = np.ascontiguousarray(constant.const_value.numpy().transpose(order))
        made = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        made.shape, made.type = ir.Shape(array.shape), constant.type
        graph.register_initializer(made)
    return graph.initializers[name]


def subtract_biases(model: ir.Model) -> None:
    """Write ``x @ w + b`` as ``x @ w - (-b)``, equal to the bit, where ONNX Runtime would else compute it in float.

    It has no int8 kernel for a Gemm with a float bias, and makes one of every MatMul and Add of matrices or of fixed
    shapes, which then dequantizes its weight in every run: 1600 µs in place of 225 for ``[1, 64, 512] @ [512, 1024]``
    (ONNX Runtime 1.31, one thread). A Sub it leaves alone; OpenVINO makes it the layer's bias again, and TensorRT's
    parser takes it, unlike the int32 bias that would do as well.
    """
    for node in list(model.graph):
        result = node.outputs[0]
        if node.op_type == "Gemm" and len(node.inputs) == 3 and _dequantizes_a_constant(node.inputs[1]):
            bias = node.inputs[2]
            if _is_constant(bias) and _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1.0:
                node.resize_inputs(2)
                _subtract(model.graph, node, result, bias, result)
        elif node.op_type == "Add" and any(_is_constant(value) for value in node.inputs):
            bias, product = sorted(node.inputs, key=_is_constant, reverse=True)
            multiply = product.producer() if product is not None else None
            if multiply is None or multiply.op_type != "MatMul" or not _dequantizes_a_constant(multiply.inputs[1]):
                continue
            if result.shape is not None and (len(result.shape) == 2 or result.shape.is_static()):
                _subtract(model.graph, node, product, bias, result)
                model.graph.remove(node, safe=True)


def _subtract(
    graph: ir.Graph, after: ir.Node, product: ir.Value | None, bias: ir.Value | None, result: ir.Value
) -> None:
    """Insert ``product - (-bias)`` behind a node, in the place and under the name of ``result``."""
    assert bias is not None
    assert bias.const_value is not None
    name = f"{bias.name}_negated"
    if name not in graph.initializers:
        constant = ir.Value(name=name, const_value=ir.tensor(-bias.const_value.numpy(), name=name))
        constant.shape, constant.type = bias.shape, bias.type
        graph.register_initializer(constant)
    difference = ir.Value(name=result.name, shape=result.shape, type=result.type)
    result.replace_all_uses_with(difference, replace_graph_outputs=True)
    result.name = f"{result.name}_without_bias"
    graph.insert_after(after, ir.node("Sub", inputs=[product, graph.initializers[name]], outputs=[difference]))


def _dequantizes_a_constant(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear" and _is_constant(producer.inputs[0])


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def strip_metadata(model: ir.Model) -> None:
    """Remove everything that is about how the model was written, not about what it computes."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "compress", None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
        if value.const_value is not None:  # anew: a tensor still backed by protobuf cannot be changed
            value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def name_nodes(model: ir.Model, components: Mapping[ir.Node, str] | None = None) -> None:
    """Give every unnamed node a name in graph order, and each its component's in front: layers are reported by it."""
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
        if components is not None:
            node.name = component_prefix(components[node]) + node.name
