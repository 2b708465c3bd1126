"""The nodes of an ONNX model, read from its bytes without the ``onnx`` package: what a layer was made of.

Field numbers: onnx.proto3 (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtimes.onnxfile import fields, unpacked

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_TENSOR = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3
_TENSOR_SIZE, _TENSOR_NAME = 1, 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator: the names of what it reads and makes, and its attributes that are integers."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int]


def read_nodes(data: bytes | memoryview) -> list[Node]:
    """The nodes of the main graph, in their order; the bodies of If, Loop and Scan are not looked into.

    Raises:
        ValueError, IndexError: if ``data`` is not an ONNX model.
    """
    nodes = []
    for number, graph in fields(memoryview(data)):
        if number != _MODEL_GRAPH or isinstance(graph, int):
            continue
        nodes += [_node(value) for part, value in fields(graph) if part == _GRAPH_NODE and not isinstance(value, int)]
    return nodes


def read_shapes(data: bytes | memoryview) -> dict[str, tuple[int, ...]]:
    """The shape of each constant of the main graph, by name.

    Raises:
        ValueError, IndexError: if ``data`` is not an ONNX model.
    """
    shapes = {}
    for number, graph in fields(memoryview(data)):
        if number != _MODEL_GRAPH or isinstance(graph, int):
            continue
        for part, tensor in fields(graph):
            if part == _GRAPH_TENSOR and not isinstance(tensor, int):
                name, shape = _constant(tensor)
                shapes[name] = shape
    return shapes


def _constant(message: memoryview) -> tuple[str, tuple[int, ...]]:
    name, shape = "", []
    for number, value in fields(message):
        if number == _TENSOR_NAME and not isinstance(value, int):
            name = str(value, "utf-8", "replace")
        elif number == _TENSOR_SIZE:        # one by one, or packed
            shape += [value] if isinstance(value, int) else unpacked(value)
    return name, tuple(shape)


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP)}
    integers: dict[str, int] = {}
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number in texts:
            texts[number].append(str(value, "utf-8", "replace"))
        elif number == _NODE_ATTRIBUTE:
            integers |= _integer(value)
    return Node(
        name="".join(texts[_NODE_NAME][-1:]), op="".join(texts[_NODE_OP][-1:]), inputs=tuple(texts[_NODE_INPUT]),
        outputs=tuple(texts[_NODE_OUTPUT]), integers=integers,
    )  # fmt: skip


def _integer(message: memoryview) -> dict[str, int]:
    found = dict(fields(message))
    name, value = found.get(_ATTRIBUTE_NAME), found.get(_ATTRIBUTE_INTEGER)
    return {str(name, "utf-8", "replace"): value} if isinstance(name, memoryview) and isinstance(value, int) else {}
