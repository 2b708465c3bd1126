"""The attention maps of a graph: where it computes how much each place looks at each other one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from compress.quantize.attention import FUSED, PRODUCTS, role, softmax_of


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A fused attention, whose map no node has: names of the nodes it reads, and how it weighs their product."""

    query: str
    key: str
    mask: str | None
    scale: float | None
    causal: bool

    @property
    def nodes(self) -> tuple[str, ...]:
        """What :meth:`of` reads, in its order."""
        return (self.query, self.key, *(() if self.mask is None else (self.mask,)))

    def of(self, values: Sequence[Tensor]) -> Tensor:
        """``softmax(q · kᵀ · scale + mask)``, ``(batch, heads, queries, keys)``.

        Where a mask hides every key of a query, its row is even, in place of torch's NaN.

        Args:
            values: of :attr:`nodes`: queries ``(batch, heads, queries, width)``, keys ``(batch, heads, keys, width)``,
                of fewer heads where several queries share them, and the mask, bool or float.

        Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
        """
        query, key, *masks = values
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if self.scale is None else self.scale)
        if self.causal:
            masks.append(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril())
        for mask in masks:
            hidden = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            scores = hidden.clamp(min=torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1)


def find_maps(graph: Graph) -> Iterator[tuple[Node, Attention | None]]:
    """The nodes that attend, in their order, each with how its map is computed; ``None`` where its value is the map."""
    for node in graph.nodes:
        if node.target == FUSED:
            yield node, _fused(node)
        elif node.target in PRODUCTS and role(node) == "values" and (shares := softmax_of(node.args[0])) is not None:
            yield shares, None


def _fused(node: Node) -> Attention:
    query, key = node.args[0], node.args[1]
    mask, scale = _argument(node, 3, "attn_mask", None), _argument(node, 6, "scale", None)
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    return Attention(
        query=query.name, key=key.name, mask=mask.name if isinstance(mask, Node) else None, scale=scale,
        causal=bool(_argument(node, 5, "is_causal", default=False)),
    )  # fmt: skip


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    given: Mapping[str, Any] = node.kwargs
    return node.args[position] if len(node.args) > position else given.get(name, default)
