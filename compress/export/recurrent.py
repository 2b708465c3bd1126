"""The recurrent operators of :mod:`compress.recurrent` as ONNX ``LSTM``, ``GRU`` and ``RNN``: one node a layer.

torch and ONNX order the gates of a layer differently, in every weight and bias: an LSTM's input, forget, cell, output
gates are input, output, forget, cell in ONNX; a GRU's reset, update, new are update, reset, hidden there, with
``linear_before_reset``. Source: the operators' formulas in torch's and ONNX's own documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import FLOAT, opset18, optimizer

from compress.recurrent import OPERATORS

op: Any = opset18  # its annotations want tensors where it takes plain lists of numbers as well
_ZERO = onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, (), [0])
_GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # ONNX's gate -> torch's


def _lstm(
    input: FLOAT, state: Sequence[FLOAT], weights: Sequence[FLOAT],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    return _layers("LSTM", {}, input, state, weights, biases, layers, bidirectional, batch_first)


def _gru(
    input: FLOAT, state: Sequence[FLOAT], weights: Sequence[FLOAT],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    return _layers("GRU", {"linear_before_reset": 1}, input, state, weights, biases, layers, bidirectional, batch_first)


def _rnn_tanh(
    input: FLOAT, state: Sequence[FLOAT], weights: Sequence[FLOAT],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    return _layers("RNN", {}, input, state, weights, biases, layers, bidirectional, batch_first)


def _rnn_relu(
    input: FLOAT, state: Sequence[FLOAT], weights: Sequence[FLOAT],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    activations = {"activations": ["Relu"] * (2 if bidirectional else 1)}
    return _layers("RNN", activations, input, state, weights, biases, layers, bidirectional, batch_first)


_BY_NAME = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(torch.ops.compress, name).default: _BY_NAME[name] for name in OPERATORS
}
"""For ``torch.onnx.export``'s ``custom_translation_table``."""


def _layers(
    kind: str, attributes: Mapping[str, Any], x: Any, state: Sequence[Any], weights: Sequence[Any],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    """One ONNX node a layer, each reading the last one's outputs; the results torch's operator has, in its order."""
    directions = 2 if bidirectional else 1
    each = 4 if biases else 2
    hidden = int(weights[1].shape[1])
    low = kind == "LSTM" and _is_signed(x)
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    final: list[list[Any]] = []
    for layer in range(layers):
        if layer and low:       # what a layer gives is within -1 and 1
            step, zero = op.Constant(value_float=1 / 127), op.Constant(value=_ZERO)
            x = op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)
        first = layer * directions
        own = [weights[each * (first + d) : each * (first + d + 1)] for d in range(directions)]
        values = [_stacked([_reordered(kind, w[i], hidden) for w in own]) for i in (0, 1)]
        bias = None
        if biases:
            bias = _stacked([op.Concat(*[_reordered(kind, b, hidden) for b in w[2:]], axis=0) for w in own])
        initial = [value if layers == 1 else op.Slice(value, [first], [first + directions], [0]) for value in state]
        y, *ends = getattr(op, kind)(
            x, *values, bias, None, *initial, hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward", **attributes,
        )  # fmt: skip
        # (length, directions, batch, hidden) -> (length, batch, directions * hidden)
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]) if bidirectional else op.Squeeze(y, [1])
        final.append(ends)
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    ends = [values[0] if layers == 1 else op.Concat(*values, axis=0) for values in zip(*final, strict=True)]
    return x, *ends


def _is_signed(x: Any) -> bool:
    """Whether ``x`` is dequantized from signed integers, as what an int8 LSTM reads (``compress.quantize.schemes``)."""
    producer = x.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return False
    return bool(producer.inputs[0].dtype == ir.DataType.INT8)


def _reordered(kind: str, value: Any, hidden: int) -> Any:
    """``value``'s rows, which are those of one gate after the other, in ONNX's order of gates."""
    if kind == "RNN":
        return value
    rows = [gate * hidden + row for gate in _GATES[kind] for row in range(hidden)]
    return op.Gather(value, op.Constant(value_ints=rows), axis=0)


def _stacked(values: Sequence[Any]) -> Any:
    made = [op.Unsqueeze(value, [0]) for value in values]
    return made[0] if len(made) == 1 else op.Concat(*made, axis=0)


def fold_recurrent_weights(model: ir.Model) -> None:
    """Compute the reordered weights of every layer once: engines want them constant, at any size."""
    wanted: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in _GATES and node.domain in ("", "ai.onnx"):
            for value in node.inputs[1:4]:
                _gather(value, wanted)
    if wanted:
        optimizer.fold_constants(
            model, input_size_limit=0, output_size_limit=2**40, should_fold=lambda node: node in wanted
        )


def _gather(value: ir.Value | None, into: set[ir.Node]) -> None:
    producer = None if value is None else value.producer()
    if producer is not None and producer not in into:
        into.add(producer)
        for source in producer.inputs:
            _gather(source, into)
