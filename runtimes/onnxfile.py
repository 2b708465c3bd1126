"""Look inside an ONNX file's bytes for data kept in other files, without the ``onnx`` package.

An ONNX tensor may name another file to read its values from, by any path (``../secret``, an absolute one), and ONNX
Runtime follows it. An engine here is self-contained, so such a model is refused before a backend sees it.

Field numbers: onnx.proto3 (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto). Wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

from runtimes.errors import RuntimesError

# message -> field number -> message it holds; a field not listed holds no tensor.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_MAX_DEPTH = 64


def refuse_external_data(data: bytes | mmap, where: str) -> None:
    """Raise unless ``data`` is an ONNX model that holds all of its tensors; ``where`` names the file.

    Raises:
        RuntimesError: if a tensor's data are in another file, or ``data`` is not a readable ONNX model.
    """
    if data[4:8] == b"ORTM":  # ONNX Runtime would read it as its own format, which this module cannot check
        raise RuntimesError(f"{where} is an ORT-format model, not ONNX: export it again")
    try:
        _walk(memoryview(data), "model", where, 0)
    except (IndexError, ValueError) as error:
        raise RuntimesError(f"{where} is not an ONNX model ({error}): it is damaged, export it again") from error


def _walk(message: memoryview, kind: str, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    inner = _MESSAGES[kind]
    for number, value in fields(message):
        if number not in inner or isinstance(value, int):
            continue
        if inner[number] == "tensor":
            _check_tensor(value, where)
        else:
            _walk(value, inner[number], where, depth + 1)


def _check_tensor(message: memoryview, where: str) -> None:
    name, places, external = "", [], False
    for number, value in fields(message):
        if number == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value).decode(errors="replace")
        elif number == _TENSOR_DATA_LOCATION and value != 0:
            external = True
        elif number == _TENSOR_EXTERNAL_DATA and not isinstance(value, int):
            external = True
            entry = {n: bytes(v).decode(errors="replace") for n, v in fields(value) if not isinstance(v, int)}
            if entry.get(_ENTRY_KEY) == "location":
                places.append(entry.get(_ENTRY_VALUE, ""))
    if external:
        raise RuntimesError(
            f"{where}: tensor {name!r} keeps its data in another file ({', '.join(map(repr, places)) or 'unnamed'}): "
            "external data is not supported, export the model as one file"
        )


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field of a protobuf message: its number, and its integer or its bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:  # a parser of 32 bits would read another field
            raise ValueError(f"field number {number} at byte {at}")
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > end:
            raise ValueError(f"field {number} is cut short")
        yield number, message[at : at + size]
        at += size


def unpacked(packed: memoryview) -> list[int]:
    """The numbers of a packed field."""
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        found.append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
