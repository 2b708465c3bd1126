"""Build an OpenVINO engine: the IR (``model.xml`` and ``model.bin``), the same bytes on every build."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.export.building import import_backend, new_folder, read_onnx
from compress.targets import Target
from runtimes.engine import Engine, Precision, write_engine
from runtimes.spec import Dim, TensorSpec

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # ours -> OpenVINO's INFERENCE_PRECISION_HINT


def build(
    onnx: Path,
    target: Target,
    into: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    precision: Precision,
) -> Engine:
    """Write the engine folder ``into`` from the file ``onnx``; nothing is left of it after a failure.

    The weights are stored as they are in the ONNX file; the precision the rest is computed in is an option of the
    session. Dynamic dimensions get the specs' bounds, without which the NPU compiles nothing.

    Raises:
        CompressError: if the file, its inputs or the precision do not fit (``read_onnx``), or OpenVINO refuses it.
    """
    source = read_onnx(onnx, target, inputs=inputs, outputs=outputs, precision=precision)
    openvino = import_backend("openvino", target)
    with new_folder(into):
        try:
            model = openvino.Core().read_model(onnx)
            model.reshape({spec.name: _bounded(spec, openvino) for spec in inputs})
            _rename(model, Counter())
            openvino.save_model(model, into / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            raise CompressError(f"OpenVINO refuses {onnx}: {_reason(error)}") from error
        return write_engine(
            into,
            backend="openvino",
            device=target.device,
            precision=precision,
            entry="model.xml",
            inputs=inputs,
            outputs=outputs,
            options={"INFERENCE_PRECISION_HINT": _HINTS[target.float if precision == "int8" else precision]},
            source=source.digest,
            built_with={"openvino": openvino.__version__},
            state="runnable",
        )


def _bounded(spec: TensorSpec, openvino: Any) -> Any:
    sizes = [openvino.Dimension(s.min, s.max) if isinstance(s, Dim) else openvino.Dimension(s) for s in spec.shape]
    return openvino.PartialShape(sizes)


def _rename(model: Any, count: Counter[str]) -> None:
    """Number the operations that OpenVINO named after a counter of the process, ``Constant_9`` or ``Add_7_1``, anew.

    An ONNX node whose own name looks like that is renumbered too; the names of tensors stay.
    """
    for operation in model.get_ordered_ops():
        for body in _bodies(operation):
            _rename(body, count)
        kind = operation.get_type_name()
        if re.fullmatch(rf"{kind}(_\d+)+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{kind}_{count[kind]}")
            count[kind] += 1


def _bodies(operation: Any) -> list[Any]:
    """The graphs inside an If, a Loop or a TensorIterator."""
    kind = operation.get_type_name()
    if kind == "If":
        return [operation.get_function(branch) for branch in (0, 1)]
    return [operation.get_function()] if kind in ("Loop", "TensorIterator") else []


def _reason(error: RuntimeError) -> str:
    """OpenVINO's own sentence, without the lines that say where in its sources it was thrown."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not re.match(r"(Exception from |Check '.*' failed at )", line)]
    return " ".join(said or lines)[:500]
