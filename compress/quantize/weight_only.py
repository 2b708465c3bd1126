"""Weights that are quantized alone: which operators have them, and on which grid; what they read stays float.

A product with one row, a decoder's step, takes as long as its weights take to be read: four bits in place of 32 pay
without a single int8 product. Backends dequantize such weights within their kernels, those of linear layers alone.
"""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node

from compress.model import GROUPS, WeightOnly
from compress.quantize.grid import WeightGrid
from compress.quantize.schemes import Scheme

if TYPE_CHECKING:
    from compress.quantize.annotate import Operator

INT8 = WeightGrid(low=-127, high=127)


def weight_alone(
    operator: Operator, module: GraphModule, node: Node, asked: WeightOnly, scheme: Scheme | None
) -> Operator:
    """``operator``, that ``node`` of ``module`` is, with its weight quantized alone where ``asked`` says so.

    Other operators of those modules stay float, with the reason, but for tables, of which that holds anyway. A linear
    layer with a number of inputs that no group divides gets int8 in place of int4.
    """
    bits, glob = _asked(operator.path, asked)
    if bits is None or operator.float_reason is not None or operator.op == "embedding":
        return operator
    if operator.op != "linear":
        why = f"{glob!r} asks for its weights alone in int{bits}, and " + (
            "it has none" if operator.other else "no backend runs that but for linear layers")
        return dataclasses.replace(operator, float_reason=why, results=())
    grid = INT8 if bits == 8 else _groups(module, node, asked.group, scheme)
    return dataclasses.replace(operator, activation="", results=(), alone=grid)


def _asked(path: str, asked: WeightOnly) -> tuple[int | None, str]:
    """The bits, and the glob that says so; the fewer where two do."""
    for bits, globs in ((4, asked.int4), (8, asked.int8)):
        for glob in globs:
            if fnmatchcase(path, glob):
                return bits, glob
    return None, ""


def _groups(module: GraphModule, node: Node, largest: int, scheme: Scheme | None) -> WeightGrid:
    weight = node.args[1]
    assert isinstance(weight, Node)
    inputs, group = attrgetter(str(weight.target))(module).shape[1], largest
    while inputs % group:
        group //= 2
    if group < min(GROUPS):
        return INT8
    low, high = (-7, 7) if scheme is None else (scheme.groups.low, scheme.groups.high)
    return WeightGrid(low=low, high=high, group=group)
