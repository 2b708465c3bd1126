"""Weights and inputs of types that engines are slow with or have no kernels for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, shortened


def examine(patient: Patient) -> Iterator[Finding]:
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name, tensor in patient.weights.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype is not torch.float32:
            by_dtype.setdefault(tensor.dtype, []).append(name)
    for dtype, names in by_dtype.items():
        word = str(dtype).removeprefix("torch.")
        yield Finding(
            examination="dtypes", severity="blocks" if dtype.is_complex else "costs speed", where=shortened(names),
            what=f"{len(names)} weights are {word}" + (": engines have no complex numbers" if dtype.is_complex else
                 ": engines keep the type, and few have fast kernels for it"),
            concerns=("export", "quantize", *(target.name for target in patient.targets)),
            remedy="write real and imaginary parts as two tensors" if dtype.is_complex else
            "save the model in float32 (model.float()): half precision is the target's choice, made at export",
        )  # fmt: skip
    doubles = [name for name, value in patient.example.items() if value.dtype.name in ("float64", "float16")]
    if doubles:
        dtype_name = patient.example[doubles[0]].dtype.name
        yield Finding(
            examination="dtypes", severity="costs speed", where=f"input {shortened(doubles)}",
            what=f"the example's {shortened(doubles)} is {dtype_name}, so the engine's input is as well",
            concerns=("save", "export"), remedy="give the example as float32: value.astype('float32')",
        )  # fmt: skip
