"""The ONNX of each graph, written once per opset, with each node's module in its name."""

from __future__ import annotations

from pathlib import Path

from compress.doctor.patient import Patient
from compress.errors import CompressError


def onnx_of(patient: Patient, graph: str, opset: int) -> Path | str:
    """The file, or why torch cannot write it. Its nodes are named ``module.path::node``."""
    from compress.export.onnx import write_onnx

    assert patient.model is not None
    key = graph, opset
    if key not in patient.written:
        index = list(patient.model.graphs).index(graph)
        path = patient.work / f"{index}.{opset}.onnx"
        try:
            patient.written[key] = write_onnx(
                patient.model.graphs[graph], path, opset=opset, component_of=lambda path: path or "model"
            )
        except CompressError as error:
            patient.written[key] = str(error)
        except Exception as error:  # export would end with it: that is what the user needs to know beforehand
            patient.written[key] = f"writing ONNX opset {opset} fails: {type(error).__name__}: {error}"
    return patient.written[key]


def name_of(patient: Patient, graph: str) -> str:
    """What messages call a graph: the model itself where it has one."""
    assert patient.model is not None
    return "the model" if len(patient.model.graphs) == 1 else f"graph {graph!r}"
