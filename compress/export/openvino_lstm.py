"""LSTMs in int8 on OpenVINO's CPU: what a layer reads, its state and its weights as its kernel takes them.

The kernel has one step for what is read and for the state, which is within -1 and 1, and one for the two weights of a
row; of each it asks the first alone. And it takes the rows' steps in another order of gates than the rows (OpenVINO
2026.4: with a step for every row an LSTM of width 256 errs by 6.4 % where its rounding makes 1.8). So what is read is
divided by its range, which goes into its weights, and the four gates of a unit share a step, as do both weights. And it
keeps kernels by the layers' shapes, with the first one's steps: of layers of one shape the first alone is in int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SHAPES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}
LOW, HIGH, LARGEST = np.float32(-128 / 127), np.float32(1.0), 127


def quantize_lstms(model: Any) -> None:
    """Rewrite each LSTMSequence of an ``openvino.Model`` that is to run in int8, which begins with zeros.

    It is one that reads signed integers: activations are unsigned where a scheme has LSTMs, and one that stays float
    may well read those of a convolution (:mod:`compress.quantize.annotate`).
    """
    from openvino import opset13 as operations

    seen: set[tuple[tuple[int, ...], ...]] = set()
    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "LSTMSequence":
            continue
        reach = _reach(layer.input_value(0))
        read, state = (_constant(layer.input_value(place)) for place in (4, 5))
        if reach is None or read is None or state is None or (read.shape, state.shape) in seen:
            continue
        seen.add((read.shape, state.shape))
        _bypass(layer.input_value(0))
        _round(layer.input(0), reach, operations)
        shape = layer.input(1).get_partial_shape()
        if shape.is_static:     # rounding it would be computed ahead, and the kernel be the one of floats
            layer.input(1).replace_source_output(operations.constant(np.zeros(shape.to_shape(), np.float32)).output(0))
        else:
            _round(layer.input(1), 1.0, operations)
        for place, (integers, steps) in zip((4, 5), integers_of(read * np.float32(reach), state), strict=True):
            held = operations.convert(operations.constant(integers), "f32")
            layer.input(place).replace_source_output(
                operations.multiply(held, operations.constant(steps)).output(0))


def integers_of(read: np.ndarray, state: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of an LSTM as integers and steps, which both and the four gates of each unit share.

    Args:
        read: of what it reads, f32 ``(directions, 4 * hidden, features)``.
        state: of its state, f32 ``(directions, 4 * hidden, hidden)``.

    Returns:
        Of each: int8 of its shape, and steps f32 ``(directions, 4 * hidden, 1)``.
    """
    rows = np.maximum(np.abs(read).max(2), np.abs(state).max(2))
    units = rows.reshape(len(rows), 4, -1).max(1, keepdims=True)
    steps = np.broadcast_to(np.where(units > 0, units / LARGEST, 1), (len(rows), 4, units.shape[2]))
    steps = steps.reshape(len(rows), -1, 1).astype(np.float32)
    return [(np.rint(weight / steps).astype(np.int8), steps) for weight in (read, state)]


def _reach(value: Any) -> float | None:
    """The largest magnitude of what is read, where that is quantized."""
    node = _source(value)
    step = _constant(node.input_value(1)) if node.get_type_name() == "Multiply" else None
    if step is None or step.size != 1 or _quantized(node) is None:
        return None
    return float(step.reshape(-1)[0]) * LARGEST


def _source(value: Any) -> Any:
    """What computes a value, or the value that it is in another shape."""
    node = value.get_node()
    while node.get_type_name() in _SHAPES:
        node = node.input_value(0).get_node()
    return node


def _quantized(multiply: Any) -> Any | None:
    """The FakeQuantize whose signed integers ``multiply`` dequantizes; None where it does something else."""
    node, integers = multiply.input_value(0).get_node(), ""
    while node.get_type_name() in ("Convert", "Subtract"):
        integers = node.output(0).get_element_type().get_type_name()
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "FakeQuantize" and integers == "i8" else None


def _bypass(value: Any) -> None:
    """Let what is read by this layer alone be read as it was before it was quantized."""
    node = value.get_node()
    while node.get_type_name() in _SHAPES and _read_once(node):
        node = node.input_value(0).get_node()
    rounded = _quantized(node) if node.get_type_name() == "Multiply" and _read_once(node) else None
    if rounded is not None:
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(rounded.input_value(0))


def _read_once(node: Any) -> bool:
    """Whether one operator alone reads its values; its shape may be asked for."""
    readers = [reader.get_node().get_type_name() for reader in node.output(0).get_target_inputs()]
    return len(readers) - readers.count("ShapeOf") == 1


def _round(place: Any, reach: float, operations: Any) -> None:
    """Round what is read to 8 bits of [-reach, reach], and divide it by ``reach``."""
    ends = [operations.constant(np.float32(end)) for end in (LOW * reach, HIGH * reach, LOW, HIGH)]
    place.replace_source_output(operations.fake_quantize(place.get_source_output(), *ends, 256).output(0))


def _constant(value: Any) -> np.ndarray | None:
    """What constants make of a value, cut and put together again as gates are; None where it is anything else."""
    node = value.get_node()
    kind, sources = node.get_type_name(), node.input_values()
    if kind == "Constant":
        return np.array(node.data)
    if kind not in ("Split", "Concat"):
        return None
    found = [part for source in sources if (part := _constant(source)) is not None]
    if len(found) < len(sources):
        return None
    if kind == "Concat":
        return np.concatenate(found, node.get_attributes()["axis"])
    cut: np.ndarray = np.split(found[0], node.get_attributes()["num_splits"], int(found[1]))[value.get_index()]
    return cut
