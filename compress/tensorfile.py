"""Tensors as a safetensors file without a second copy of them: written from where they are, read where they lie.

The library's own functions on bytes hold every tensor twice. The bytes are theirs: 8 of the header's length, the header
(JSON: name -> type, shape, place), and the tensors one behind the other. Format: safetensors, README.md, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LENGTH = 8     # bytes, of the header's own length; the header is padded to a multiple of it


def tensor_pieces(tensors: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """The file of ``tensors``, in pieces: its header, then the memory of each tensor, copied only where it has gaps."""
    empty = safetensors.torch.save({name: torch.empty(0, dtype=value.dtype) for name, value in tensors.items()})
    listed = json.loads(empty[_LENGTH:])    # what the library calls the types, and its order, which sizes do not change
    at = 0
    places: dict[str, Any] = {}
    pieces: list[memoryview] = []
    for name, entry in listed.items():
        value = tensors[name].detach().cpu().contiguous()
        places[name] = {**entry, "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        pieces.append(value.reshape(-1).view(torch.uint8).numpy().data)
        at += value.nbytes
    header = json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH)
    return [len(header).to_bytes(_LENGTH, "little") + header, *pieces]


def read_tensors(data: bytearray) -> dict[str, torch.Tensor]:
    """The tensors in the file ``data``, each of them a view of it, in the order they lie in.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is no such file, or its tensors overlap, have gaps
            between them or end elsewhere than the file.
    """
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if not _LENGTH < start <= len(data):
        raise ValueError("its tensors have no header")
    entries = json.loads(data[_LENGTH:start])
    entries.pop("__metadata__", None)
    tensors, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _DTYPES[entry["dtype"]], [_size(size) for size in entry["shape"]]
        count = math.prod(shape)
        end = at + count * dtype.itemsize
        if entry["data_offsets"] != [at, end] or start + end > len(data) or (start + at) % dtype.itemsize:
            raise ValueError(f"tensor {name!r:.80} does not lie where the one before it ends")
        tensors[name] = (torch.frombuffer(data, dtype=dtype, count=count, offset=start + at) if count
                         else torch.empty(0, dtype=dtype)).reshape(shape)
        at = end
    if start + at != len(data):
        raise ValueError(f"{len(data) - start - at} bytes behind its last tensor")
    return tensors


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.80} is no size of a tensor")
    return value
