"""Layers in other words, written as the operators that are quantized.

``x @ weight`` and ``addmm(bias, x, weight)`` are a linear layer; ``padding="same"`` of a convolution is so many zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
PADDED: dict[Any, Any] = {_aten.conv1d.padding: _aten.conv1d.default, _aten.conv2d.padding: _aten.conv2d.default}
_PRODUCTS = {_aten.matmul.default, _aten.mm.default}
_TRANSPOSES = {_aten.t.default, _aten.numpy_T.default, _aten.mT.default, _aten.transpose.int}
_UNPADDED = (None, None, None, 1, "valid", 1, 1)     # value, weight, bias, stride, padding, dilation, groups


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product of an ``activation`` with a ``weight`` ``(inputs, outputs)``, and a ``bias`` ``(outputs,)``."""

    activation: Node
    weight: Node
    bias: Node | None = None


def as_linear(module: GraphModule, node: Node) -> Linear | None:
    """The linear layer that ``node`` is in other words.

    Its weight is a parameter, or the transpose of one. Buffers are no weights: positions times frequencies, say, which
    eight bits would spoil.
    """
    if node.target in _PRODUCTS:
        found = Linear(activation=node.args[0], weight=node.args[1])  # type: ignore[arg-type]
    elif node.target is _aten.addmm.default and not node.kwargs:
        bias, activation, weight = node.args
        found = Linear(activation=activation, weight=weight, bias=bias)  # type: ignore[arg-type]
        if not _is_parameter(module, found.bias, 1):
            return None
    else:
        return None
    is_matrix = _is_parameter(module, _base(found.weight), 2)
    return found if is_matrix and found.activation.meta["val"].ndim > 1 else None


def write_layers(module: GraphModule) -> None:
    """Write every such operator as a layer."""
    for node in list(module.graph.nodes):
        with module.graph.inserting_before(node):
            if node.target in PADDED:
                made = _convolution(module, node)
            elif (found := as_linear(module, node)) is not None:
                weight = _base(found.weight)
                if weight is found.weight:
                    weight = _call(module, node, _aten.t.default, weight)
                made = _call(module, node, _aten.linear.default, found.activation, weight, found.bias)
            else:
                continue
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.recompile()


def _convolution(module: GraphModule, node: Node) -> Node:
    """The convolution with its padding in numbers; where the two sides differ, behind a padding of its own."""
    given: list[Any] = [*node.args, *_UNPADDED[len(node.args) :]]
    value, weight, bias, stride, padding, dilation, groups = given
    kernel = weight.meta["val"].shape[2:]
    stride, dilation = _each(stride, len(kernel)), _each(dilation, len(kernel))
    missing = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True)]
    before = [count // 2 for count in missing]
    if any(count % 2 for count in missing):
        sides = [side for count in reversed(missing) for side in (count // 2, count - count // 2)]
        value = _call(module, node, _aten.constant_pad_nd.default, value, sides, 0.0)
        before = [0] * len(missing)
    return _call(module, node, PADDED[node.target], value, weight, bias, stride, before, dilation, groups)


def _each(given: Any, axes: int) -> list[int]:
    """A size for each axis; one alone is for all of them."""
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    return sizes if len(sizes) == axes else sizes * axes


def _call(module: GraphModule, node: Node, target: Any, *arguments: Any) -> Node:
    """A new node that belongs to the module of ``node``."""
    made = module.graph.call_function(target, arguments)
    made.meta = {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
    return made


def _base(weight: Any) -> Any:
    """What ``weight`` is the transpose of, or itself."""
    if not isinstance(weight, Node) or weight.target not in _TRANSPOSES:
        return weight
    if weight.target is _aten.transpose.int and {axis % 2 for axis in weight.args[1:]} != {0, 1}:  # type: ignore[operator]
        return weight
    return weight.args[0]


def _is_parameter(module: GraphModule, node: Any, axes: int) -> bool:
    if not isinstance(node, Node) or node.op != "get_attr":
        return False
    held = attrgetter(str(node.target))(module)
    return isinstance(held, nn.Parameter) and isinstance(held, Tensor) and held.ndim == axes
