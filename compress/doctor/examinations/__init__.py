"""The examinations, one file each: ``examine(patient)`` yields findings. In the order a reader wants to know them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.errors import CompressError

EXAMINATIONS = (
    "runs", "untraceable", "dynamic_sizes", "data_shapes",
    "finite", "randomness", "batch", "inputs", "unused_weights", "dtypes", "mode",
    "backends", "opset", "memory", "half_range",
    "outliers", "stays_float", "pruning",
)  # fmt: skip


def examine(patient: Patient, progress: Callable[[int, int, str], None] | None = None) -> Iterator[Finding]:
    """All of them; one that the model itself keeps from being made says so."""
    for done, name in enumerate(EXAMINATIONS):
        if progress is not None:
            progress(done, len(EXAMINATIONS), name.replace("_", " "))
        try:
            yield from importlib.import_module(f"{__name__}.{name}").examine(patient)
        except CompressError as error:
            yield Finding(examination=name, severity="note", what=f"this could not be examined: {error}")
