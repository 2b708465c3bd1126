"""Export: from a model to the engine of a target, through ONNX."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import CompressError
from compress.targets import Target
from runtimes.engine import Engine, Precision

if TYPE_CHECKING:
    from compress.model import Model

BUILDERS: Mapping[str, str] = {
    "openvino": "compress.export.openvino",
    "onnxruntime": "compress.export.onnxruntime",
    "tensorrt": "compress.export.tensorrt",
    "tensorrt_rtx": "compress.export.tensorrt",
}
"""Backend -> the module whose ``build`` makes its engines from ONNX."""


def export(
    model: Model, target: Target, into: Path, *, graph: str | None = None, precision: Precision | None = None
) -> Engine:
    """Build the engine of one graph of ``model`` for ``target`` in the new folder ``into``.

    Args:
        model: a float or a quantized model.
        target: a row of :mod:`compress.targets`.
        into: the engine's folder; it appears complete or not at all.
        graph: which graph; may be left out where the model has one.
        precision: by default int8 for a quantized graph and fp32 for a float one; the target's half precision builds
            the half control.

    Raises:
        CompressError: if there is no such graph, the model was quantized for another scheme, or the backend refuses it.
    """
    model = only(model, graph)
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        onnx = export_onnx(model, target, Path(folder) / "model.onnx")
        return build_engine(onnx, model, target, into, precision=precision)


def only(model: Model, graph: str | None) -> Model:
    """``model`` with that graph alone."""
    if graph is None and len(model.graphs) == 1:
        graph = next(iter(model.graphs))
    if graph is None or graph not in model.graphs:
        problem = "name one with graph=" if graph is None else f"there is no {graph!r}"
        raise CompressError(f"model {model.name!r} has the graphs {list(model.graphs)}: {problem}")
    return dataclasses.replace(model, graphs={graph: model.graphs[graph]}, chain=None)


def has_int8(model: Model) -> bool:
    """Whether something in ``model`` is quantized; a graph that only looks up a table stays float beside others."""
    if model.quantization is None or any(model.quantization.ranges.get(name) for name in model.graphs):
        return model.quantization is not None
    from compress.quantize.prepare import is_quantized

    return bool(model.quantization.weight_only) and any(is_quantized(model, name) for name in model.graphs)


def export_onnx(model: Model, target: Target, path: Path) -> Path:
    """Write the ONNX of ``model``, of one graph, that ``target``'s engines are built from: Q/DQ for a quantized one."""
    from compress.export.onnx import write_onnx
    from compress.onnxmodel import OnnxModel, write_onnx_model

    if model.quantization is not None:
        from compress.quantize.prepare import convert

        if model.quantization.scheme != target.scheme:
            raise CompressError(
                f"model {model.name!r} is quantized with the scheme {model.quantization.scheme!r}, target "
                f"{target.name!r} runs {target.scheme!r}: quantize the float model for it"
            )
        model = model if isinstance(model, OnnxModel) else convert(model)
    if isinstance(model, OnnxModel):
        return write_onnx_model(model, path)
    return write_onnx(model.graph, path, opset=target.opset, component_of=model.component_of)


def build_engine(onnx: Path, model: Model, target: Target, into: Path, *, precision: Precision | None = None) -> Engine:
    """Build the engine of an ONNX file that :func:`export_onnx` wrote for ``model``."""
    if precision is None:
        precision = "int8" if has_int8(model) else "fp32"
    builder = importlib.import_module(BUILDERS[target.backend])
    engine: Engine = builder.build(onnx, target, into, inputs=model.inputs, outputs=model.outputs, precision=precision)
    return engine
