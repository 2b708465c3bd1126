"""Inputs that have no effect on any output: a modality that the model ignores."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.comparing import differs
from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, varied
from compress.errors import CompressError

_TRIES = 3


def examine(patient: Patient) -> Iterator[Finding]:
    outputs = patient.outputs
    if outputs is None:
        return
    for spec in patient.inputs:
        for seed in range(_TRIES):
            changed = {**patient.example, spec.name: varied(patient.example[spec.name], seed)}
            try:
                if differs(outputs, patient.run(changed), tolerance=0.0):
                    break
            except CompressError:                # these values were not the model's: a token outside its table
                break
        else:
            yield Finding(
                examination="inputs", severity="blocks", where=f"input {spec.name!r}",
                what=f"other values of {spec.name!r} ({spec.modality}) leave every output as it is, to the bit: on its "
                     "example the model ignores it",
                concerns=("every stage",),
                remedy="check that forward() uses it, that its weights are trained and that no mask of the example "
                       "hides it; leave it out of the inputs if it is not needed",
            )  # fmt: skip
