"""The library's own reader and writer of safetensors is the reference, to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch

from compress.tensorfile import _DTYPES, read_tensors, tensor_pieces

TENSORS = {
    "vision.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a scalar": torch.tensor(1.5, dtype=torch.bfloat16),
    "nothing": torch.zeros(3, 0, 2, dtype=torch.float16),
    "é\"\n\x7f\u2028": torch.tensor([True, False, True]),
    "transposed": torch.arange(6, dtype=torch.int64).reshape(2, 3).T,
    "bias": torch.nn.Parameter(torch.tensor([0.25, -1.0], dtype=torch.float64)),
    **{f"of type {name}": torch.zeros(3).to(dtype) for name, dtype in _DTYPES.items()},
}  # fmt: skip


def test_the_bytes_are_the_librarys() -> None:
    expected = safetensors.torch.save({name: value.detach().contiguous() for name, value in TENSORS.items()})
    assert b"".join(tensor_pieces(TENSORS)) == expected
    assert b"".join(tensor_pieces({})) == safetensors.torch.save({})


def test_tensors_come_back_as_the_library_reads_them() -> None:
    data = safetensors.torch.save({n: v.detach().contiguous() for n, v in TENSORS.items()}, metadata={"format": "pt"})
    expected = safetensors.torch.load(data)
    read = read_tensors(bytearray(data))
    assert read.keys() == expected.keys()
    for name, value in read.items():
        assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(value.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8))


def test_writing_and_reading_copy_no_tensor() -> None:
    weight = torch.ones(4, 4)
    _, piece = tensor_pieces({"weight": weight})
    weight[0, 0] = 7
    assert bytes(piece[:4]) == b"\x00\x00\xe0\x40"      # 7 in float32
    data = bytearray(safetensors.torch.save({"weight": weight}))
    read = read_tensors(data)["weight"]
    data[-4:] = b"\x00\x00\xe0\x40"
    assert read[3, 3] == 7


def _file(header: Any, content: bytes) -> bytearray:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return bytearray(len(text).to_bytes(8, "little") + text + content)


def _entry(at: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytearray(), "its tensors have no header"),
        (bytearray(b"x" * 64), "its tensors have no header"),
        (_file({"a": _entry(0, 8, [2])}, b"x" * 7), "tensor 'a' does not lie where the one before it ends"),
        (_file({"a": _entry(0, 8, [2])}, b"x" * 9), "1 bytes behind its last tensor"),
        (_file({"a": _entry(0, 8, [3])}, b"x" * 8), "tensor 'a' does not lie"),
        (_file({"a": _entry(0, 4, [1]), "b": _entry(0, 4, [1])}, b"x" * 8), "tensor 'b' does not lie"),
        (_file({"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, b"x" * 12), "tensor 'b' does not lie"),
        (_file({"a": _entry(0, 1, [1], "U8"), "bb": _entry(1, 5, [1])}, b"x" * 5), "tensor 'bb' does not lie"),
        (_file({"a": _entry(0, 8, [-1, -2])}, b"x" * 8), "-1 is no size"),
        (_file({"a": _entry(0, 4, [True])}, b"x" * 4), "True is no size"),
        (_file({"a": _entry(0, 4, ["1"])}, b"x" * 4), "'1' is no size"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(data: bytearray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tensors(data)


def test_a_type_that_torch_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match="F4"):
        read_tensors(_file({"a": _entry(0, 4, [1], "F4")}, b"x" * 4))
