"""Weights, and outputs on the samples, that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.places import Place
from compress.doctor.tracing import finite_enough


def examine(patient: Patient) -> Iterator[Finding]:
    bad = [name for name, tensor in patient.weights.items() if not finite_enough(tensor)]
    for name in bad:
        value = patient.weights[name].detach()
        wrong = int((~torch.isfinite(value)).sum())
        yield Finding(
            examination="finite", severity="blocks", where=name, concerns=("save", "every stage"),
            what=f"{wrong} of the {value.numel()} values of weight {name} are NaN or infinite",
            remedy="the training diverged: go back to an earlier checkpoint, with a lower rate or clipped gradients",
        )  # fmt: skip
    if bad or patient.outputs is None:
        return
    for name, output in patient.outputs.items():
        if not output.is_floating_point() or bool(torch.isfinite(output).all()):
            continue
        operator, place = _origin(patient)
        yield Finding(
            examination="finite", severity="blocks", where=place.path or f"output {name!r}", source=place.source,
            what=f"output {name!r} has NaN or infinite values on the example"
                 + (f"; the first come out of {operator}" if operator else ""),
            concerns=("quantize", "parity", "eval"),
            remedy="give an example of real values; guard divisions and logarithms with a small constant",
        )  # fmt: skip


def _origin(patient: Patient) -> tuple[str, Place]:
    """The first operator with a NaN in its result, or with an infinity where there is no NaN."""
    for wrong in ("nan", "infinite"):
        for seen in patient.seen:
            if getattr(seen, wrong):
                return seen.op, seen.place
    return "", Place()
