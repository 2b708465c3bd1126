"""Whether the model runs on its example at all."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.places import of_error
from compress.errors import CompressError


def examine(patient: Patient) -> Iterator[Finding]:
    try:
        patient.run(patient.example)
    except CompressError as error:
        place = None if patient.module is None else of_error(error, patient.module)
        yield Finding(
            examination="runs", severity="blocks", what=str(error), concerns=("save", "every stage"),
            where=(place.path if place is not None else "") or "forward",
            source=None if place is None else place.source,
            remedy="check the example: names, types and shapes of forward()'s arguments",
        )  # fmt: skip
