"""Answers that OpenVINO gets wrong, most of them in int8 graphs, and the same graph written so that it does not.

All seen with OpenVINO 2026.4; ONNX Runtime and torch agree with each other on the same graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TINY = np.float32(2.0 ** -100)      # no sum of float32 products that is not itself as small changes by it
REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum")
TURNING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
LONGEST = 16                        # operations that dequantize a weight


def pad_apart(model: Any) -> None:
    """Rewrite convolutions of one place that take every second, say, of an image with a border.

    Their steps are handed to what is before, as if there were no border: the answer has a row less, or is empty. The
    border is put on before; a maximum, of which one is the least float32, keeps it from becoming the convolution's,
    which runs in float then.
    """
    from openvino import opset13 as operations

    least = operations.constant(np.array(np.finfo(np.float32).min, np.float32))
    zero = operations.constant(np.zeros((), np.float32))
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Convolution" or _type_name(operation.output(0)) != "f32":
            continue
        given = operation.get_attributes()
        sizes = list(operation.input(1).get_partial_shape())[2:]
        before, behind = list(given["pads_begin"]), list(given["pads_end"])
        if any(size != 1 for size in sizes) or max(given["strides"]) == 1 or not any((*before, *behind)):
            continue
        wide = operations.pad(operation.input_value(0), [0, 0, *before], [0, 0, *behind], "constant", zero)
        without = [0] * len(sizes)
        made = operations.convolution(operations.maximum(wide, least), operation.input_value(1), given["strides"],
                                      without, without, given["dilations"], name=operation.get_friendly_name())
        made.output(0).set_names(operation.output(0).get_names())
        for reader in operation.output(0).get_target_inputs():
            reader.replace_source_output(made.output(0))


def avoid_faults(model: Any) -> None:
    """Rewrite an ``openvino.Model`` that has FakeQuantize or Quantize operations; what it computes stays the same."""
    from openvino import opset13 as operations

    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind == "Convert":
            _keep_conversion(operation, operations)
        elif kind == "Add":
            _fold_bias(operation, operations)
        elif _type_name(operation.output(0)) != "f32":
            continue
        elif kind in REDUCTIONS:
            _keep_factor(operation, operations)
            if kind in ("ReduceMax", "ReduceMin"):
                _keep_sign(operation, operations)
        elif kind in ("Convolution", "GroupConvolution", "MatMul") and _is_constant(operation.input_value(1)):
            _add_bias(operation, operations)


def _type_name(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _keep_sign(reduce: Any, operations: Any) -> None:
    """A quantization is computed as part of the maximum before it, which then loses values below zero.

    ``max(x, the least float32)`` in between, which is ``x``, keeps the two apart.
    """
    least = operations.constant(np.array(np.finfo(np.float32).min, np.float32))
    _put_behind(reduce, lambda result: operations.maximum(result, least))


def _keep_factor(reduce: Any, operations: Any) -> None:
    """A factor for each channel, as a norm's, is put off until behind a reduction that drops its axis, and applied to
    the wrong channels in the quantization there. ``max(x, the least float32)`` keeps it before.
    """
    if reduce.get_attributes()["keep_dims"]:
        return
    value = reduce.input_value(0)
    node = value.get_node()
    while node.get_type_name() in TURNING:
        node = node.input_value(0).get_node()
    if node.get_type_name() in ("Multiply", "Divide") and any(map(_is_constant, node.input_values())):
        least = operations.constant(np.array(np.finfo(np.float32).min, np.float32))
        reduce.input(0).replace_source_output(operations.maximum(value, least).output(0))


def _keep_conversion(convert: Any, operations: Any) -> None:
    """A conversion from float64 becomes part of a quantization behind it, or is taken for one that is undone.

    There is no kernel for either. ``max(x, the least float32)`` keeps it apart from both.
    """
    if (_type_name(convert.input(0)), _type_name(convert.output(0))) == ("f64", "f32"):
        least = operations.constant(np.array(np.finfo(np.float32).min, np.float32))
        _put_behind(convert, lambda result: operations.maximum(result, least))


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


def _add_bias(layer: Any, operations: Any) -> None:
    """Where a layer without a bias is read by a mean, or by two operators, its scales are applied to the wrong values.

    A bias keeps them with the layer, and costs nothing. One of zeros is taken away again, so it is the next to zero.
    """
    readers = [port.get_node() for port in layer.output(0).get_target_inputs()]
    summed = len(readers) == 1 and readers[0].get_type_name() in ("Add", "Subtract")
    if summed and any(_is_bias(value.get_node()) for value in readers[0].input_values()):
        return
    shape = layer.output(0).get_partial_shape()
    axis = shape.rank.get_length() - 1 if layer.get_type_name() == "MatMul" else 1
    if not shape[axis].is_static:
        return
    sizes = [shape[axis].get_length() if at == axis else 1 for at in range(shape.rank.get_length())]
    bias = operations.constant(np.full(sizes, TINY))
    _put_behind(layer, lambda result: operations.add(result, bias))


def _is_bias(node: Any) -> bool:
    """A constant that is not zero throughout; of one that :func:`_fold_bias` will fold, that constant."""
    if node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and bool(node.data.any())


def _put_behind(operation: Any, made: Any) -> None:
    """Let what reads the operation read what ``made`` makes of it; an output of the model keeps its name."""
    readers = [port for port in operation.output(0).get_target_inputs() if port.get_node().get_type_name() != "Result"]
    if readers:
        between = made(operation.output(0))
        for reader in readers:
            reader.replace_source_output(between.output(0))


def _is_constant(value: Any) -> bool:
    """Whether it is computed from few constants alone: a weight, dequantized."""
    waiting: list[Any] = [value.get_node()]
    seen: set[str] = set()
    while waiting and len(seen) < LONGEST:
        current = waiting.pop()
        if current.get_type_name() in ("Parameter", "ReadValue"):
            return False
        if current.get_friendly_name() not in seen:
            seen.add(current.get_friendly_name())
            waiting += [source.get_node() for source in current.input_values()]
    return not waiting
