"""What a convolution gives is quantized where it is read in float: as integers it is written and read back faster.

ONNX Runtime has an int8 convolution only where the result is quantized, and else dequantizes its weight in every run;
OpenVINO and TensorRT add what a convolution gives to other integers as part of it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from compress.quantize.views import SAME_VALUES

_aten = torch.ops.aten
CONVOLUTIONS = {_aten.conv1d.default, _aten.conv2d.default}
_CLIPPING = {
    _aten.relu.default, _aten.relu_.default, _aten.relu6.default, _aten.hardtanh.default, _aten.hardtanh_.default,
    _aten.clamp.default, _aten.clamp_.default, _aten.clamp_min.default,
}  # fmt: skip
_SUMS = {_aten.add.Tensor, _aten.add_.Tensor}
# Quantizing before these or behind them gives the same: none changes a value but for putting a larger one in its place.
_MONOTONE = SAME_VALUES | _CLIPPING | {_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.cat.default}


def quantized_behind(module: GraphModule, low: Collection[str]) -> dict[str, tuple[tuple[str, str], ...]]:
    """The tensors to quantize behind each int8 convolution, each with the tensor whose range it gets.

    Its own result, after an activation function that clips, unless int8 operators alone read it, which quantize it
    themselves, or it is an output. And what it is added to, of which int8 operators may read the same. Where only what
    keeps or picks its values is between a result and another tensor that is quantized, both get the range of that one:
    then the two quantizations are one.

    Args:
        module: an exported program.
        low: the names of its operators in int8.
    """
    results = {}
    for node in module.graph.nodes:
        if node.target in CONVOLUTIONS and node.name in low:
            result = _clipped(node)
            if not _read_by(result, low) and not _is_output(result):
                results[node.name] = result
    others = {name: [other for user in result.users if (other := _other(user, result)) is not None
                     and not any(other is one for one in results.values())]
              for name, result in results.items()}  # fmt: skip
    added = {other for found in others.values() for other in found}
    return {
        name: ((result.name, _read_as(result, low, added).name), *((other.name, other.name) for other in others[name]))
        for name, result in results.items()
    }  # fmt: skip


def _clipped(node: Node) -> Node:
    """The result of a convolution behind its activation function, if that clips."""
    while len(node.users) == 1 and (reader := next(iter(node.users))).target in _CLIPPING:
        node = reader
    return node


def _read_by(value: Node, low: Collection[str]) -> bool:
    """Whether int8 operators read ``value`` as an activation, and nothing else does."""
    return all(user.name in low and any(value is argument for argument in user.args[:2]) for user in value.users)


def _read_as(result: Node, low: Collection[str], quantized: Collection[Node]) -> Node:
    """The next tensor that is quantized, if it is ``result`` but for larger values in place of others; or itself."""
    current = result
    while len(current.users) == 1 and (reader := next(iter(current.users))).target in _MONOTONE:
        current = reader
        if current in quantized or _read_by(current, low):
            return current
    return result


def _is_output(node: Node) -> bool:
    """Whether an output of the program has its values: it stays as exact as it is."""
    return any(user.op == "output" or (user.target in SAME_VALUES and _is_output(user)) for user in node.users)


def _other(user: Node, result: Node) -> Node | None:
    """What ``user`` adds to ``result``: activations of the same shape."""
    if user.target not in _SUMS or user.kwargs or len(user.args) != 2:
        return None
    other: Any = user.args[1] if user.args[0] is result else user.args[0]
    if not isinstance(other, Node) or other is result or other.op != "call_function":
        return None
    first, second = (node.meta.get("val") for node in (other, result))
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.is_floating_point():
        return None
    return other if first.shape == second.shape else None
