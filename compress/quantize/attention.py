"""Attention as the products it is made of: what is one operator in torch is two matrix products to a quantizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from compress.quantize.views import SAME_VALUES

aten = torch.ops.aten
FUSED = aten.scaled_dot_product_attention.default
ADDED = aten.baddbmm.default
PRODUCTS = {aten.matmul.default, aten.bmm.default}
SOFTMAX = {aten.softmax.int, aten._softmax.default}
_WEIGHING = SAME_VALUES | {     # what may be between a product and its softmax: scales, masks, other shapes
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.add_.Tensor,
    aten.sub.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther,
    aten.expand.default, aten.to.dtype, aten._to_copy.default, aten.dropout.default,
}  # fmt: skip
_NO_SHARES = {aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.where.self, aten.where.ScalarOther}
_MOVING = SAME_VALUES | {       # what leaves each value of its first argument, or of the list it is, as it is
    aten.expand.default, aten.cat.default, aten.slice.Tensor, aten.mul.Scalar, aten.repeat_interleave.self_int,
}  # fmt: skip


def fused(node: Node) -> bool:
    """Whether :func:`expose` takes this node apart. It leaves attention with dropout."""
    if node.target == ADDED:
        return not node.kwargs
    return node.target == FUSED and not _argument(node, 4, "dropout_p", 0.0)


def expose(module: GraphModule) -> None:
    """Write each fused attention as ``softmax(q @ k.T * scale + mask) @ v``, the function it is documented to be.

    ``baddbmm``, which ``nn.MultiheadAttention`` makes of scores and a mask, becomes a product and a sum.
    """
    for node in list(module.graph.nodes):
        if fused(node):
            writer = _Writer(module, node)
            with module.graph.inserting_before(node):
                result = writer.sum() if node.target == ADDED else writer.attention()
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
    module.recompile()


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class _Writer:
    """Writes nodes that belong to the module of ``node``."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self.graph, self.node = module.graph, node

    def call(self, target: Any, *arguments: Any, **named: Any) -> Node:
        made = self.graph.call_function(target, arguments, named)
        made.meta = {key: value for key, value in self.node.meta.items() if key == "nn_module_stack"}
        return made

    def sum(self) -> Node:
        mask, first, second = self.node.args
        return self.call(aten.add.Tensor, self.call(aten.bmm.default, first, second), mask)

    def attention(self) -> Node:
        query, key, value = self.node.args[:3]
        assert isinstance(query, Node)
        if _argument(self.node, 7, "enable_gqa", default=False):
            key, value = (self._for_each_head(given, query) for given in (key, value))
        mask = _argument(self.node, 3, "attn_mask", None)
        scale = self.node.kwargs.get("scale")
        if scale is None:
            scale = 1 / math.sqrt(query.meta["val"].shape[-1])
        scores = self.call(aten.matmul.default, query, self.call(aten.transpose.int, key, -2, -1))
        scores = self.call(aten.mul.Tensor, scores, scale)
        if mask is None and _argument(self.node, 5, "is_causal", default=False):
            mask = self._causal(query, key)
        if isinstance(mask, Node):
            if "val" not in mask.meta or mask.meta["val"].dtype == torch.bool:      # without one it is made here
                hidden = self.call(aten.logical_not.default, mask)
                scores = self.call(aten.masked_fill.Scalar, scores, hidden, -math.inf)
            else:
                scores = self.call(aten.add.Tensor, scores, mask)
        shares = self.call(aten.softmax.int, scores, -1)
        return self.call(aten.matmul.default, shares, value)

    def _for_each_head(self, shared: Any, query: Node) -> Any:
        """Keys or values ``(.., shared heads, length, width)`` that heads share, once for each head of ``query``."""
        times = query.meta["val"].shape[-3] // shared.meta["val"].shape[-3]
        return shared if times == 1 else self.call(aten.repeat_interleave.self_int, shared, times, -3)

    def _causal(self, query: Node, key: Any) -> Node:
        """True where a query sees a key: those up to its own place, ``(queries, keys)``."""
        sizes = [self.call(aten.sym_size.int, query, -2), self.call(aten.sym_size.int, key, -2)]
        return self.call(aten.tril.default, self.call(aten.ones.default, sizes, dtype=torch.bool, device="cpu"))


def role(node: Node) -> str:
    """What a product is in attention: its ``scores``, its ``values``, or ``""``: a product of something else."""
    if node.target not in PRODUCTS:
        return ""
    if softmax_of(node.args[0]) is not None:
        return "values"
    waiting, seen = list(node.users), set()
    while waiting:
        reader = waiting.pop()
        if reader.target in SOFTMAX:
            return "scores"
        if reader.target in _WEIGHING and reader not in seen:
            seen.add(reader)
            waiting += reader.users
    return ""


def softmax_of(node: Any) -> Node | None:
    """The softmax that ``node`` is, or is a view of."""
    while isinstance(node, Node):
        if node.target in SOFTMAX:
            return node
        if node.target not in _WEIGHING or node.target in _NO_SHARES:
            return None
        node = node.args[0]
    return None


def reads_an_input(node: Any) -> bool:
    """Whether ``node`` holds values of an input of the graph as they were given: a cache of keys, say."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if not isinstance(current, Node):
            continue
        if current.op == "placeholder":
            return True
        if current.target in _MOVING:
            first = current.args[0]
            waiting += first if isinstance(first, list | tuple) else [first]
    return False
