"""The constants of an ONNX file: written from where they are, and read where they lie, without a copy in between.

protobuf holds a model once as messages and once as bytes, and a backend that is given bytes copies them twice more. So
a file is written in parts, the large constants from their own memory; and a backend reads a *light* model, which names
each large constant as a place in the file itself, and maps that.

Field numbers: onnx.proto3 (ModelProto, GraphProto, TensorProto). Wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from compress.tensors import Data, fields

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

LARGE = 1024        # bytes of a constant that is worth a place of its own
_GRAPH, _INITIALIZER, _RAW_DATA, _DELIMITED = 7, 5, 9, 2

Part = bytes | ir.Tensor[Any]


def onnx_parts(model: ir.Model) -> list[Part]:
    """The bytes of ``model`` as protobuf's ``SerializeToString(deterministic=True)`` has them, its large constants as
    they are."""
    values = model.graph.initializers
    large = {
        name: value.const_value for name, value in values.items()
        if isinstance(value.const_value, ir.Tensor) and value.const_value.nbytes >= LARGE
    }  # fmt: skip
    for name, tensor in large.items():
        values[name].const_value = ir.ExternalTensor(
            "", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
        )
    try:
        proto = ir.to_proto(model)
    finally:
        for name, tensor in large.items():
            values[name].const_value = tensor
    parts: list[Part] = [_serialized(proto.graph, below=_INITIALIZER)]
    for constant in proto.graph.initializer:
        if constant.name not in large:
            content = constant.SerializeToString(deterministic=True)
            parts.append(_opening(_INITIALIZER, len(content)) + content)
            continue
        tensor = large[constant.name]
        constant.ClearField("data_location")
        constant.ClearField("external_data")
        start = constant.SerializeToString(deterministic=True) + _opening(_RAW_DATA, tensor.nbytes)
        parts += [_opening(_INITIALIZER, len(start) + tensor.nbytes) + start, tensor]
    parts.append(_serialized(proto.graph, above=_INITIALIZER))
    before, after = _serialized(proto, below=_GRAPH), _serialized(proto, above=_GRAPH)
    return [before + _opening(_GRAPH, size_of(parts)), *parts, after]


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of the file."""
    return sum(part.nbytes if isinstance(part, ir.Tensor) else len(part) for part in parts)


def write_parts(parts: Sequence[Part], path: Path) -> None:
    with path.open("wb") as file:
        for part in parts:
            if isinstance(part, ir.Tensor):
                part.tofile(file)
            else:
                file.write(part)


def light_model(data: Data, location: str) -> ModelProto:
    """The model in the file ``data`` with its large constants named as places in the file ``location``.

    Raises:
        DecodeError: if it is not an ONNX model (protobuf's own; :mod:`runtimes.onnxfile` says it better, before).
    """
    from onnx import ModelProto

    model = ModelProto()
    for number, begin, start, end in _fields(data, 0, len(data)):
        if number == _GRAPH:
            _light_graph(data, start, end, model.graph, location)
        else:
            model.MergeFromString(data[begin:end])
    return model


def _light_graph(data: Data, at: int, end: int, graph: GraphProto, location: str) -> None:
    for number, begin, start, stop in _fields(data, at, end):
        places = [] if number != _INITIALIZER else [
            (first, last) for part, _, first, last in _fields(data, start, stop) if part == _RAW_DATA
        ]  # fmt: skip
        if len(places) != 1 or places[0][1] - places[0][0] < LARGE:
            graph.MergeFromString(data[begin:stop])
            continue
        constant = graph.initializer.add()
        for part, first, _, last in _fields(data, start, stop):
            if part != _RAW_DATA:
                constant.MergeFromString(data[first:last])
        constant.data_location = constant.EXTERNAL
        first, last = places[0]
        for key, value in (("location", location), ("offset", str(first)), ("length", str(last - first))):
            constant.external_data.add(key=key, value=value)


def _fields(data: Data, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of the message in ``data[at:end]``: its number, where it begins, and where its value is, from and to.

    One whose value is no message or bytes gets the number 0.
    """
    for number, start, stop in fields(data, at, end):
        yield (number if data[at] & 7 == _DELIMITED else 0), at, start, stop
        at = stop


def _serialized(message: Any, below: int = 0, above: int = 1 << 29) -> bytes:
    """The fields of ``message`` with a number less than ``below`` or greater than ``above``."""
    kept = type(message)()
    kept.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if below <= field.number <= above:
            kept.ClearField(field.name)
    return bytes(kept.SerializeToString(deterministic=True))


def _opening(number: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of a message's field ``number``, which is less than 16."""
    opening = [number << 3 | _DELIMITED]
    while size > 0x7F:
        opening.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*opening, size])
