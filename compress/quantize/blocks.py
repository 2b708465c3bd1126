"""Residual blocks of a program: all that lies between a value and the sum it is added to again.

They are what learned rounding reconstructs as a whole. Source: Li et al. 2021 (BRECQ), arXiv:2102.05426, section 3.2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor
from torch.fx import Node

SUMS = {"aten::add", "aten::add_"}


def residual_blocks(nodes: Sequence[Node], layers: Collection[str]) -> list[list[Node]]:
    """The blocks among ``nodes``, each in the order it runs and ending in its sum, none within another.

    Args:
        nodes: of a program, in the order they run.
        layers: names of those with weights; a block has one of them at least.
    """
    place = {node: index for index, node in enumerate(nodes)}
    above: dict[Node, int] = {}         # bit i: what node i gives is read, by whatever way
    for node in nodes:
        above[node] = 1 << place[node]
        for source in node.all_input_nodes:
            above[node] |= above.get(source, 0)
    blocks: list[list[Node]] = []
    taken: set[Node] = set()
    for node in nodes:
        begin = _begin(node, place, above)
        if begin is None:
            continue
        block = [inner for inner in nodes[place[begin] + 1 : place[node] + 1]
                 if above[inner] >> place[begin] & 1 and above[node] >> place[inner] & 1]  # fmt: skip
        if not taken & set(block) and any(inner.name in layers for inner in block):
            blocks.append(block)
            taken |= set(block)
    return blocks


def _begin(node: Node, place: dict[Node, int], above: dict[Node, int]) -> Node | None:
    """The value that ``node`` adds to what was made of it; ``None`` where it is no such sum."""
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    terms = node.args[:2]
    if name not in SUMS or not all(isinstance(term, Node) and term in place for term in terms):
        return None
    first, second = terms
    for begin, end in ((first, second), (second, first)):
        assert isinstance(begin, Node)
        assert isinstance(end, Node)
        if begin is not end and above[end] >> place[begin] & 1 and isinstance(begin.meta.get("val"), Tensor):
            return begin
    return None
