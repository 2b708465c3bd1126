"""Where in an engine's files its tensors lie, so that a tensor of one version can be found in the next.

Known are OpenVINO's ``.bin``, by the ``Const`` layers of its ``.xml``, and the ``raw_data`` of an ONNX file's
initialisers. Field numbers: onnx.proto3. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtimes.bundle import Bundle

Data = bytes | mmap.mmap
_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 7, 5, 1, 2, 8, 9
SMALLEST = 16       # bytes; a smaller tensor costs more to list than it saves


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor's bytes are in its file."""

    at: int
    size: int
    kind: tuple[str, ...]       # its element type and shape, to tell a tensor from another of its name


def tensors_of(bundle: Bundle, name: str) -> dict[str, Place]:
    """The tensors inside file ``name`` of a bundle, by their names; none where the file is of another format.

    A name that two tensors share is left out: it tells neither.
    """
    path = bundle.path / name
    if name.endswith(".onnx"):
        found = list(_onnx(path.read_bytes()))
    elif name.endswith(".bin") and str(Path(name).with_suffix(".xml")) in bundle.files:
        found = list(_openvino(path.with_suffix(".xml").read_bytes(), path.stat().st_size))
    else:
        return {}
    names = [tensor for tensor, _ in found]
    return {tensor: place for tensor, place in found if names.count(tensor) == 1 and place.size >= SMALLEST}


def _openvino(xml: bytes, size: int) -> Iterator[tuple[str, Place]]:
    try:
        layers = list(ET.fromstring(xml).iterfind("layers/layer[@type='Const']"))
    except ET.ParseError:
        return
    for layer in layers:
        data = layer.find("data")
        if data is None:
            continue
        at, length = data.get("offset", ""), data.get("size", "")
        if at.isdecimal() and length.isdecimal() and int(at) + int(length) <= size:
            kind = (data.get("element_type", ""), data.get("shape", ""))
            yield layer.get("name", ""), Place(at=int(at), size=int(length), kind=kind)


def _onnx(data: Data) -> Iterator[tuple[str, Place]]:
    try:
        for graph, start, end in fields(data, 0, len(data)):
            if graph != _GRAPH:
                continue
            for number, first, last in fields(data, start, end):
                if number == _INITIALIZER:
                    yield from _tensor(data, first, last)
    except (IndexError, ValueError):
        return      # not ONNX, or damaged: no tensor is known in it


def _tensor(data: Data, start: int, end: int) -> Iterator[tuple[str, Place]]:
    found: dict[int, bytes] = {}
    raw: tuple[int, int] | None = None
    for number, first, last in fields(data, start, end):
        if number == _RAW_DATA:
            raw = first, last
        elif number in (_DIMS, _DATA_TYPE, _NAME):
            found[number] = found.get(number, b"") + data[first:last]
    if raw is not None and _NAME in found:
        kind = (found.get(_DATA_TYPE, b"").hex(), found.get(_DIMS, b"").hex())
        yield found[_NAME].decode(errors="replace"), Place(at=raw[0], size=raw[1] - raw[0], kind=kind)


def fields(data: Data, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field of the message in ``data[at:end]``: its number, and where its value is, from and to."""
    while at < end:
        key, at = _varint(data, at)
        start = at
        if key & 7 == 0:
            _, at = _varint(data, at)
        elif key & 7 == 2:
            size, start = _varint(data, at)
            at = start + size
        elif key & 7 in (1, 5):
            at = start + (8 if key & 7 == 1 else 4)
        else:
            raise ValueError(f"wire type {key & 7}")
        if at > end:
            raise ValueError("cut short")
        yield key >> 3, start, at


def _varint(data: Data, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
