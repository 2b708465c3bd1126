"""Multiply-accumulates of a layer as it ran, from the shapes its backend shows; the roofline's numerator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

Shape = tuple[int, ...]

_PRODUCT = re.compile(r"MatMul|Gemm|FullyConnected|InnerProduct", re.IGNORECASE)
_CONVOLUTION = re.compile(r"Conv(?!ert)", re.IGNORECASE)
_ATTENTION = re.compile(r"^(SDPA|ScaledDotProductAttention)", re.IGNORECASE)
_OTHERS = re.compile(r"Attention|SDPA|LSTM|GRU|RNN|Einsum", re.IGNORECASE)


def is_arithmetic(kind: str) -> bool:
    """Whether a layer of this type multiplies and accumulates; OpenVINO's, ONNX Runtime's, TensorRT's and ONNX's."""
    return any(pattern.search(kind) for pattern in (_PRODUCT, _CONVOLUTION, _OTHERS))


def macs(kind: str, inputs: Sequence[Shape | None], output: Shape | None, *, transposed: bool = False) -> int | None:
    """Multiply-accumulates of one run of a layer, None where its kind or its shapes do not tell.

    Args:
        kind: the layer's type. A product of matrices ``(..., m, k) x (..., k, n)`` and attention are told by their
            operands, of which a backend may hide the second (ONNX Runtime packs constant weights away); a convolution
            by its weights ``(o, i / groups, ...)``, the first later input of three axes or more (scales come before
            those of a QLinearConv); a transposed convolution and a recurrent layer not.
        inputs: shape of each input, the first operand first.
        output: ``(..., m, n)``, ``(n, o, ...)`` or, where a convolution runs channels last, ``(n, ..., o)``.
        transposed: the product's first operand is ``(..., k, m)``.
    """
    if output is None or not inputs or inputs[0] is None:
        return None
    first = inputs[0]
    if _ATTENTION.search(kind):
        key, value = (*inputs[1:3], None, None)[:2]
        if key is None or value is None or len(key) < 2 or len(first) < 2:
            return None
        return prod(first[:-1]) * key[-2] * (first[-1] + value[-1])
    if _PRODUCT.search(kind):
        inner = first[-2:-1] if transposed else first[-1:]
        return prod(output) * inner[0] if inner else None
    weight = next((shape for shape in inputs[1:] if shape is not None and len(shape) > 2), None)
    if _CONVOLUTION.search(kind) and not re.search("transpose|deconv", kind, re.IGNORECASE):
        if weight is None or len(output) < 3 or not output[1]:
            return None
        if len(weight) == len(output):
            return prod(output) * prod(weight[1:])
        return prod(output) * prod(weight) // output[1]     # OpenVINO's groups have an axis of their own
    return None
