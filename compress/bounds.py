"""The values an input may take where it indexes a table: token ids, categories."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.export import ExportedProgram

from runtimes.spec import TensorSpec

# Operators that hand on every value of their first argument, or some of them.
_HANDING_ON = frozenset(
    "to _to_copy alias clone contiguous detach expand flatten permute reshape select slice squeeze t transpose "
    "unsqueeze view lift_fresh_copy".split()
)


def bounded(program: ExportedProgram, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """``inputs`` with the values of those that an embedding looks up as they came: 0 to its last row.

    Of several tables the smallest counts.
    """
    rows: dict[str, int] = {}
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        table, looked_up = node.args[:2]
        while looked_up.op == "call_function" and _operator(looked_up) in _HANDING_ON:
            looked_up = looked_up.args[0]
        if looked_up.op == "placeholder":
            size = int(table.meta["val"].shape[0])
            rows[looked_up.name] = min(size, rows.get(looked_up.name, size))
    return tuple(
        dataclasses.replace(spec, values=(0, rows[spec.name] - 1)) if spec.name in rows else spec for spec in inputs
    )


def _operator(node: torch.fx.Node) -> str:
    """``slice`` of ``aten.slice.Tensor``."""
    return str(node.target).partition(".")[2].partition(".")[0]
