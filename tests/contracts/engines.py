"""Engine folders of the tiny models, one writer per backend."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from runtimes.engine import Engine, write_engine
from tests.contracts.models import Case


def write_openvino(model: onnx.ModelProto, folder: Path) -> tuple[str, dict[str, str]]:
    import openvino

    converted = openvino.Core().read_model(model.SerializeToString())
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
    return "model.xml", {"INFERENCE_PRECISION_HINT": "f32"}


def write_onnxruntime(model: onnx.ModelProto, folder: Path) -> tuple[str, dict[str, str]]:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return "model.onnx", {}


WRITERS = {"openvino": write_openvino, "onnxruntime": write_onnxruntime}


def make_engine(case: Case, backend: str, folder: Path) -> Engine:
    folder.mkdir(parents=True)
    model = case.build()
    entry, options = WRITERS[backend](model, folder)
    return write_engine(
        folder, backend=backend, device="CPU", precision="int8" if case.name.startswith("qdq") else "fp32", entry=entry,
        inputs=case.inputs, outputs=case.outputs, options=options,
        source=hashlib.sha256(model.SerializeToString()).hexdigest(), built_with={"onnx": onnx.__version__},
        state="runnable",
    )
