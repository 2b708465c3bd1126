"""The ONNX operators that a target's TensorRT is too old for."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.exported import name_of, onnx_of
from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.errors import CompressError

_OLD = 17                                        # what TensorRT 8.6 parses, the oldest that is built for


def examine(patient: Patient) -> Iterator[Finding]:
    from compress.export.tensorrt import recipe

    for target in patient.targets:
        if target.backend != "tensorrt" or patient.model is None:
            continue
        for name in patient.model.graphs:
            file = onnx_of(patient, name, target.opset)
            if isinstance(file, str):
                continue                         # torch cannot write it: that is the backends' examination
            try:
                recipe(file, target.opset, target, {}, "fp32")
            except CompressError as error:
                newer = _newer_than(file.read_bytes(), _OLD)
                yield Finding(
                    examination="opset", severity="blocks", where=newer[0] if newer else name_of(patient, name),
                    what=str(error).replace(str(file), "the ONNX").partition(": ")[0]
                         + (f"; newer than opset {_OLD} are {', '.join(newer)}" if newer else ""),
                    concerns=("export", target.name), remedy=str(error).partition(": ")[2],
                )  # fmt: skip


def _newer_than(onnx: bytes, opset: int) -> list[str]:
    """``"Gelu (opset 20) in text.act"`` of each kind of operator that came after ``opset``, where it is used first."""
    from onnx import defs, load_model_from_string

    from runtimes.backends import COMPONENT_MARK

    model = load_model_from_string(onnx)
    version = next(entry.version for entry in model.opset_import if entry.domain == "")
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain == "" and node.op_type not in found and not defs.has(node.op_type, opset, ""):
            since = defs.get_schema(node.op_type, version, "").since_version
            found[node.op_type] = f"{node.op_type} (opset {since}) in {node.name.partition(COMPONENT_MARK)[0]}"
    return list(found.values())
