"""Outputs that differ from run to run: dropout left on, noise drawn inside the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compress.doctor.comparing import differs
from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.places import Place, of_node

_TOLERANCE = 1e-5                                # of the largest output: sums in another order


def examine(patient: Patient) -> Iterator[Finding]:
    if patient.outputs is None:
        return
    runs = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            runs.append(patient.run(patient.example))
    names = differs(*runs, tolerance=_TOLERANCE)
    if names:
        operator, place = _random_operator(patient)
        yield Finding(
            examination="randomness", severity="blocks", where=place.path or operator or f"output {names[0]!r}",
            source=place.source, concerns=("quantize", "parity", "eval", "bench"),
            what=f"two runs of the same example give different {', '.join(names)}"
                 + (f": {operator} draws random numbers in evaluation mode" if operator else ""),
            remedy="drop out only where self.training is set (nn.Dropout does); pass noise as an input",
        )  # fmt: skip


def _random_operator(patient: Patient) -> tuple[str, Place]:
    for graph in () if patient.model is None else patient.model.graphs.values():
        for node in graph.program.graph.nodes:
            tags = getattr(node.target, "tags", ())
            off = "dropout" in str(node.target) and False in node.args[2:3]
            if torch.Tag.nondeterministic_seeded in tags and not off and "scaled_dot_product" not in str(node.target):
                return str(node.target), of_node(node)
    return "", Place()
