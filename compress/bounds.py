"""The values an input may take where it indexes a table: token ids, categories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from runtimes.spec import TensorSpec

# Operators that hand on every value of their first argument, and those that hand on some.
_ALL = frozenset(
    "to _to_copy alias clone contiguous detach expand flatten permute reshape squeeze t transpose unsqueeze view "
    "lift_fresh_copy".split()
)
_SOME = frozenset({"select", "slice"})


def bounded(program: ExportedProgram, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """``inputs`` with the values of those that tables are looked up with as they came: 0 to the last row.

    Of several tables the smallest counts. Where each sees a part of the input only, a column of categories say, the
    largest does: other parts may go beyond a smaller one's rows.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    whole: set[str] = set()
    for table, looked_up, negative in _look_ups(program):
        source: Any = looked_up
        partial = False
        while source.op == "call_function" and _operator(source) in _ALL | _SOME:
            partial |= _operator(source) in _SOME
            source = source.args[0]
        if source.op == "placeholder":
            size = int(table.meta["val"].shape[0])
            low, high = -size if negative else 0, size - 1
            found.setdefault(source.name, []).append((low, high))
            if not partial:
                whole.add(source.name)
    values = {
        name: (max(low for low, _ in each), min(high for _, high in each)) if name in whole else
        (min(low for low, _ in each), max(high for _, high in each))
        for name, each in found.items()
    }  # fmt: skip
    return tuple(
        dataclasses.replace(spec, values=values[spec.name]) if spec.name in values else spec for spec in inputs
    )


def _look_ups(program: ExportedProgram) -> Iterator[tuple[torch.fx.Node, torch.fx.Node, bool]]:
    """Table, what rows are looked up with, and whether that may count from the end."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        yield *node.args[:2], False
    signature = program.graph_signature
    held = {*signature.inputs_to_parameters, *signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.index.Tensor):
        table, places = node.args
        if table.name in held and len(places) == 1 and not places[0].meta["val"].is_floating_point() and (
                places[0].meta["val"].dtype != torch.bool):
            yield table, places[0], True


def _operator(node: torch.fx.Node) -> str:
    """``slice`` of ``aten.slice.Tensor``."""
    return str(node.target).partition(".")[2].partition(".")[0]
