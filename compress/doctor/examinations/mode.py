"""A module that is in training mode, which ``compress`` leaves for the export."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, shortened

_CHANGES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)


def examine(patient: Patient) -> Iterator[Finding]:
    if not patient.training or patient.module is None:
        return
    affected = [path for path in patient.training if isinstance(patient.module.get_submodule(path), _CHANGES)]
    yield Finding(
        examination="mode", severity="note", where=shortened(affected),
        what="the model is in training mode; it is exported in evaluation mode"
             + ("" if affected else "; no layer of torch's computes otherwise there"),
        concerns=("save",), remedy="compare your own scores with model.eval() as well",
    )  # fmt: skip
