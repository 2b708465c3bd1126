"""Multiply-accumulates by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runtimes.arithmetic import Shape, is_arithmetic, macs


@pytest.mark.parametrize(("kind", "inputs", "output", "expected"), [
    ("MatMul", [(2, 3, 4), (4, 5)], (2, 3, 5), 2 * 3 * 4 * 5),
    ("MatMulIntegerToFloat", [(2, 3, 4)], (2, 3, 5), 2 * 3 * 4 * 5),       # its weight is packed away
    ("FullyConnected", [(7, 4), (5, 4)], (7, 5), 7 * 4 * 5),
    ("Convolution", [(1, 3, 8, 8), (16, 3, 3, 3)], (1, 16, 8, 8), 8 * 8 * 16 * 3 * 9),
    ("Conv", [(1, 4, 8), (6, 2, 3)], (1, 6, 8), 8 * 6 * 2 * 3),            # two groups
    ("GroupConvolution", [(1, 4, 8), (2, 3, 2, 3)], (1, 6, 8), 8 * 6 * 2 * 3),  # the same, as OpenVINO writes it
    ("ScaledDotProductAttention", [(1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 4)], (1, 2, 5, 4), 2 * 5 * 7 * (8 + 4)),
    ("QLinearConv", [(1, 32, 127), (), (), (48, 32, 8), (48,), ()], (1, 48, 30), 30 * 48 * 32 * 8),
    ("QLinearConv", [(1, 127, 32), (), (), (48, 32, 8), (48,), ()], (1, 30, 48), 30 * 48 * 32 * 8),  # channels last
    ("QLinearConv", [(1, 127, 32), (), (), (48,), (48,), ()], (1, 30, 48), None),   # its weights are packed away
    ("Conv", [(1, 3, 8, 8)], (1, 16, 8, 8), None),
    ("ConvTranspose", [(1, 3, 8, 8), (3, 16, 2, 2)], (1, 16, 16, 16), None),
    ("SDPA", [(1, 2, 5, 8)], (1, 2, 5, 4), None),
    ("LSTM", [(5, 1, 8), (1, 16, 8), (1, 16, 4)], (5, 1, 1, 4), None),
    ("MatMul", [None, (4, 5)], (2, 3, 5), None),
    ("MatMul", [], (2, 3, 5), None),
    ("MatMul", [(2, 4)], None, None),
])
def test_macs(kind: str, inputs: Sequence[Shape | None], output: Shape | None, expected: int | None) -> None:
    assert macs(kind, inputs, output) == expected


def test_a_transposed_operand() -> None:
    assert macs("FusedGemm", [(64, 2)], (2, 8), transposed=True) == 64 * 2 * 8


@pytest.mark.parametrize("kind", ["MatMul", "QGemm", "Conv", "Deconvolution", "FullyConnected", "LSTM", "GRU", "RNNSeq",
                                  "MultiHeadAttention", "ScaledDotProductAttention", "Subgraph of MatMul", "Einsum"])
def test_arithmetic(kind: str) -> None:
    assert is_arithmetic(kind)


@pytest.mark.parametrize("kind", ["Convert", "Gather", "Softmax", "FakeQuantize", "Subgraph", "Reorder"])
def test_not_arithmetic(kind: str) -> None:
    assert not is_arithmetic(kind)
