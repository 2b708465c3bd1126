"""Code that torch.export cannot follow: the line it stopped at, and how to write that instead."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, Refusal
from compress.recurrent import PADDED

_REMEDIES = (  # a part of torch's message or of the line -> what to write
    ("pack_padded", PADDED),
    ("packed sequence", PADDED),
    ("numpy", "use torch's own functions: numpy's run outside of the program"),
    (
        "Could not extract specialized integer",
        "keep sizes and indices independent of values: mask instead of slicing to a length read with .item()",
    ),
    (
        "Could not guard on data-dependent",
        "torch.where(condition, a, b) computes both and keeps one; torch.cond(condition, f, g, inputs) keeps the "
        "branch; a bound check belongs outside of forward()",
    ),
    (
        "Cannot convert symbols to int",
        "give the output a fixed size: mask or pad it, or leave the selection to the code behind the model",
    ),
)
_ELSE = "rewrite the line with torch functions of fixed-rank tensors, or move it out of forward()"


def examine(patient: Patient) -> Iterator[Finding]:
    for refusal in patient.refusals:
        if refusal.kind == "specialised" or patient.outputs is None:  # told by the examinations of those
            continue
        if refusal.kind == "refused":
            yield Finding(
                examination="untraceable", severity="blocks", what=refusal.what, where=refusal.place.path,
                source=refusal.place.source, concerns=("save", "every stage"),
            )  # fmt: skip
            continue
        branches = refusal.kind == "GuardOnDataDependentSymNode"
        what = f"control flow depends on the values of a tensor: {refusal.what}" if branches else refusal.what
        yield Finding(
            examination="untraceable", severity="blocks", what=f"torch.export cannot trace it: {what}",
            where=refusal.place.path or "forward", source=refusal.place.source, remedy=_remedy(refusal),
            concerns=("save", "every stage"),
        )  # fmt: skip


def _remedy(refusal: Refusal) -> str:
    text = f"{refusal.what} {refusal.place.source}"
    return next((remedy for part, remedy in _REMEDIES if part in text), _ELSE)
