"""Sizes that were asked to be dynamic and that the model's code fixes, with the line that does."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient


def examine(patient: Patient) -> Iterator[Finding]:
    for refusal in patient.refusals:
        for name, said in refusal.dims.items():
            yield Finding(
                examination="dynamic_sizes", severity="blocks", where=refusal.place.path or "forward",
                what=f"dimension {name!r} was asked to be dynamic, and its code does not take every size: {said}",
                source=refusal.place.source, concerns=("save", "every stage"),
                remedy="take sizes from the input's shape (x.shape[0], -1 in reshape) in place of numbers, and cut "
                       "tables to the length there is; or leave the axis fixed: None in Input(dims=...)",
            )  # fmt: skip
