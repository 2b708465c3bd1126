"""Build an OpenVINO engine: the IR (``model.xml`` and ``model.bin``), the same bytes on every build."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.export.building import import_backend, new_folder, read_onnx
from compress.export.openvino_faults import avoid_faults, pad_apart
from compress.export.openvino_lstm import quantize_lstms
from compress.export.pairs import drop_pairs
from compress.quantize.schemes import get_scheme
from compress.targets import Target
from runtimes.engine import Engine, Precision, write_engine
from runtimes.onnxgraph import read_nodes
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
            if precision == "int8":
                drop_pairs(source.light)
            with source.laid_out(into) as light:
                model = openvino.Core().read_model(light)
                model.set_friendly_name(source.light.graph.name)  # else it is OpenVINO's name of what it reads
                _bound(model, inputs, openvino)
                pad_apart(model)
                if precision == "int8":
                    if get_scheme(target.scheme).states is not None and target.device == "CPU":
                        quantize_lstms(model)
                    avoid_faults(model)
                    model.validate_nodes_and_infer_types()
                _rename(model, Counter())
                _restore(model, source.light.SerializeToString())
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
            options=_options(target, inputs, precision),
            source=source.digest,
            built_with={"openvino": openvino.__version__},
            state="runnable",
        )


def _options(target: Target, inputs: Sequence[TensorSpec], precision: Precision) -> dict[str, str]:
    """How the engine computes what is not int8.

    A decoder's step, whose cache begins with a length of 0, reads all keys and values for one row each. On a CPU its
    attention is not fused, since that packs them first, and in an int8 engine nothing is made bf16, which converts them
    first: 5.3 ms a step in place of 6.4 (Whisper's base size in int8, 2 threads, OpenVINO 2026.4; in fp32 10.1 and
    10.4).
    """
    steps = target.device == "CPU" and any(size.min == 0 for spec in inputs for size in spec.dims)
    rest = precision if precision != "int8" else "fp32" if steps else target.float
    return {"INFERENCE_PRECISION_HINT": _HINTS[rest], **({"SNIPPETS_MODE": "DISABLE"} if steps else {})}


def _bound(model: Any, inputs: Sequence[TensorSpec], openvino: Any) -> None:
    """Give each input the sizes of its spec.

    Not with ``model.reshape``: the graph it leaves behind makes the CPU plugin run int8 layers in float (30 of the
    demo's 37, OpenVINO 2026.4).
    """
    dimension = openvino.Dimension
    for spec in inputs:
        sizes = [dimension(size.min, size.max) if isinstance(size, Dim) else dimension(size) for size in spec.shape]
        model.input(spec.name).get_node().set_partial_shape(openvino.PartialShape(sizes))
    model.validate_nodes_and_infer_types()


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


def _restore(model: Any, onnx: bytes) -> None:
    """Give an operation that OpenVINO named after an output of the model the name of its ONNX node."""
    outputs = {name for output in model.outputs for name in output.get_names()}
    nodes = {name: node.name for node in read_nodes(onnx) for name in node.outputs if name in outputs and node.name}
    for operation in model.get_ordered_ops():
        if operation.get_friendly_name() in nodes:
            operation.set_friendly_name(nodes[operation.get_friendly_name()])


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
