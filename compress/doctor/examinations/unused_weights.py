"""Parameters that no output depends on: stored, shipped, never used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node

from compress.doctor.finding import Finding, size_of
from compress.doctor.patient import Patient, shortened


def examine(patient: Patient) -> Iterator[Finding]:
    if patient.model is None:
        return
    used: set[str] = set()
    stored: dict[str, torch.Tensor] = {}
    for graph in patient.model.graphs.values():
        stored |= dict(graph.program.named_parameters())
        alive = _reaching_an_output(list(graph.program.graph.nodes))
        for spec in graph.program.graph_signature.input_specs:
            if spec.kind is InputKind.PARAMETER and spec.target is not None and spec.arg.name in alive:
                used.add(spec.target)
    if patient.module is not None:
        stored |= dict(patient.module.named_parameters())
    shared = {tensor.data_ptr() for name, tensor in stored.items() if name in used}  # of tied weights, too
    idle = {name: tensor for name, tensor in stored.items() if name not in used and tensor.data_ptr() not in shared}
    if idle:
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in idle.values())
        yield Finding(
            examination="unused_weights", severity="note", where=shortened([*idle]),
            what=f"{len(idle)} parameters, {size_of(bytes_)}, are never used on the way to an output",
            concerns=("save", "distill"),
            remedy="remove their modules, or check that forward() calls what it should",
        )  # fmt: skip


def _reaching_an_output(nodes: list[Node]) -> set[str]:
    alive: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or node in alive:
            alive.update(node.all_input_nodes)
    return {node.name for node in alive}
