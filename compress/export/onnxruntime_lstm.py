"""LSTMs in int8 on ONNX Runtime's CPU: its operator that quantizes what is read, and the state, in every run.

Source: DynamicQuantizeLSTM in docs/ContribOperators.md of ONNX Runtime. 260 µs in place of 840 for 50 steps of a width
of 256 (1.31, one thread, AVX-512 VNNI).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compress.export.pairs import drop_unread, is_signed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

DOMAIN = "com.microsoft"
LARGEST = 127
_SHAPES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}
_TAKEN = {"direction", "hidden_size", "activations", "input_forget"}


def quantize_lstms(model: ModelProto) -> bool:
    """Rewrite each LSTM that is to run in int8; whether there was any.

    It is one that reads signed integers: activations are unsigned where a scheme has LSTMs, and one that stays float
    may well read those of a convolution (:mod:`compress.quantize.annotate`).
    """
    from onnx.helper import make_node, make_opsetid
    from onnx.numpy_helper import from_array, to_array

    graph = model.graph
    writer = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_of: dict[str, list[TensorProto]] = {}
    found = False
    for node in list(graph.node):
        weights = [constants[name] for name in node.input[1:3] if name in constants]
        odd = [one.name for one in node.attribute if one.name not in _TAKEN and (one.name, one.i) != ("layout", 0)]
        if node.op_type != "LSTM" or len(weights) < 2 or odd:
            continue
        source = _source(node.input[0], writer)
        if source is None or not is_signed(source, constants):
            continue
        for weight in weights:      # which several may share, also such that stay float
            if weight.name not in made_of:
                rows, steps = integers_of(to_array(weight))
                parts = {"integers": rows, "steps": steps, "zeros": np.zeros_like(steps, np.int8)}
                made_of[weight.name] = [from_array(part, f"{weight.name}_{name}") for name, part in parts.items()]
                graph.initializer.extend(made_of[weight.name])
        integers, *grids = zip(*(made_of[weight.name] for weight in weights), strict=True)
        inputs = [node.input[0], *(one.name for one in integers), *node.input[3:], *[""] * (8 - len(node.input)),
                  *(one.name for pair in zip(*grids, strict=True) for one in pair)]
        made = make_node("DynamicQuantizeLSTM", inputs, list(node.output), name=node.name, domain=DOMAIN)
        made.attribute.extend(one for one in node.attribute if one.name in _TAKEN)
        _bypass(model, node.input[0], writer)
        made.input[0] = node.input[0]
        node.CopyFrom(made)
        found = True
    if found:
        if all(opset.domain != DOMAIN for opset in model.opset_import):
            model.opset_import.append(make_opsetid(DOMAIN, 1))
        drop_unread(model)
    return found


def integers_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight as the operator has it.

    Args:
        weight: f32 ``(directions, 4 * hidden, inputs)``.

    Returns:
        int8 ``(directions, inputs, 4 * hidden)``, and a step for each row, f32 ``(directions, 4 * hidden)``.
    """
    rows = np.abs(weight).max(2)
    steps = np.where(rows > 0, rows / LARGEST, 1).astype(np.float32)
    return np.ascontiguousarray(np.rint(weight / steps[:, :, None]).astype(np.int8).transpose(0, 2, 1)), steps


def _source(name: str, writer: dict[str, NodeProto]) -> NodeProto | None:
    """What computes a value, or the value that it is in another shape; None of an input."""
    node = writer.get(name)
    while node is not None and node.op_type in _SHAPES:
        node = writer.get(node.input[0])
    return node


def _bypass(model: ModelProto, name: str, writer: dict[str, NodeProto]) -> None:
    """Let what is read by this layer alone be read as it was before it was quantized."""
    while writer[name].op_type in _SHAPES and _read_once(model, name):
        name = writer[name].input[0]
    dequantize = writer[name]
    quantize = writer.get(dequantize.input[0])
    if dequantize.op_type != "DequantizeLinear" or quantize is None or not _read_once(model, name):
        return
    for node in model.graph.node:
        node.input[:] = [quantize.input[0] if one == name else one for one in node.input]
    model.graph.node.remove(dequantize)
    if not any(quantize.output[0] in node.input for node in model.graph.node):
        model.graph.node.remove(quantize)


def _read_once(model: ModelProto, name: str) -> bool:
    return sum(name in node.input for node in model.graph.node) == 1 and (
        all(output.name != name for output in model.graph.output))
