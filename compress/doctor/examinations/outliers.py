"""Values so far above the rest that int8's 255 steps would be spent on them: of activations and of weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, shortened
from compress.doctor.watching import PERCENTILE

RATIO = 20.0                                     # of the largest to the percentile: leaves the others 13 of 255 steps
_FEWEST = 64                                     # values that make a percentile


def examine(patient: Patient) -> Iterator[Finding]:
    yield from _activations(patient)
    yield from _weights(patient)


def _activations(patient: Patient) -> Iterator[Finding]:
    from compress.quantize.annotate import find_operators

    if patient.model is None:
        return
    wanted = {operator.activation: operator.path for graph in patient.model.graphs.values()
              for operator in find_operators(graph.program.module(check_guards=False))
              if operator.float_reason is None}  # fmt: skip
    for seen in patient.seen:
        if seen.node in wanted and seen.typical > 0 and seen.largest / seen.typical > RATIO and seen.values >= _FEWEST:
            path = wanted[seen.node]
            yield Finding(
                examination="outliers", severity="costs speed", where=path, source=seen.place.source,
                what=f"what {path or 'the model'} reads has outliers: up to {seen.largest:.3g}, where {PERCENTILE} % "
                     f"of it stay below {seen.typical:.3g}; int8 keeps either them or the rest",
                concerns=("quantize",),
                remedy=f"--keep-float {path or '*'!r}, if the accuracy drops; or a normalisation in front of it",
            )  # fmt: skip


def _weights(patient: Patient) -> Iterator[Finding]:
    worst: dict[str, float] = {}
    for name, weight in patient.weights.items():
        if weight.dim() < 2 or not weight.is_floating_point() or weight[0].numel() < _FEWEST:
            continue
        rows = weight.detach().float().abs().flatten(1)
        top = rows.topk(max(2, round(rows.shape[1] * (1 - PERCENTILE / 100)) + 1), dim=1).values
        ratio = torch.where(top[:, -1] > 0, top[:, 0] / top[:, -1], 0.0).max()
        if ratio > RATIO:
            worst[name] = float(ratio)
    if worst:
        name, ratio_found = max(worst.items(), key=lambda item: item[1])
        layer = name.rpartition(".")[0] or "*"
        yield Finding(
            examination="outliers", severity="costs speed", where=shortened(sorted(worst, key=lambda n: -worst[n])),
            what=f"a channel of {name} has a weight {ratio_found:.3g} times as large as the rest of it: int8 would "
                 "round the rest away",
            concerns=("quantize",), remedy=f"--keep-float {layer!r}, or clip that weight and distil",
        )  # fmt: skip
