"""Shapes that depend on the values of an input: nonzero, a boolean mask as an index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.places import of_node


def examine(patient: Patient) -> Iterator[Finding]:
    for graph in () if patient.model is None else patient.model.graphs.values():
        known: set[Any] = set()
        ends = next(node for node in graph.program.graph.nodes if node.op == "output").all_input_nodes
        for node in graph.program.graph.nodes:
            value = node.meta.get("val")
            symbols = free_unbacked_symbols(value.shape) if isinstance(value, torch.Tensor) else set()
            reaches = node in ends and bool(symbols)
            if symbols - known or reaches:
                place = of_node(node)
                yield Finding(
                    examination="data_shapes", severity="blocks" if reaches else "costs speed",
                    where=place.path or str(node.target), source=place.source,
                    what=f"{node.target} makes a tensor whose size depends on the input's values"
                         + (", and it is an output" if reaches else ""),
                    concerns=("prune", "inspect", *patient.targets_where(backend="tensorrt"),
                              *patient.targets_where(backend="tensorrt_rtx")),
                    remedy="mask in place of selecting: x * mask, torch.where(mask, x, 0), and divide a mean by "
                           "mask.sum()",
                )  # fmt: skip
            known |= symbols
