"""Engine folders of the tiny models, one writer per backend, and whether a backend can run here."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import onnx

from runtimes.backends import is_installed
from runtimes.engine import Engine, write_engine
from runtimes.errors import DeviceGone
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
BUILT_ON_THE_GPU = {"tensorrt": "jetson-agx-orin", "tensorrt_rtx": "rtx"}  # backend -> a target of it


def why_not(backend: str) -> str | None:
    """Why engines of ``backend`` cannot run here; None where they can."""
    if not is_installed(backend):
        return f"{backend} is not installed" + (", and needs an NVIDIA GPU" if backend in BUILT_ON_THE_GPU else "")
    if backend in BUILT_ON_THE_GPU:
        from runtimes.tensorrt import gpu_facts

        try:
            gpu_facts(backend)
        except DeviceGone as error:
            return str(error)
    return None


def make_engine(case: Case, backend: str, folder: Path) -> Engine:
    model = case.build()
    precision = "int8" if case.name.startswith("qdq") else "fp32"
    if backend in BUILT_ON_THE_GPU:
        return _build_on_the_gpu(case, model, backend, folder, precision)
    folder.mkdir(parents=True)
    entry, options = WRITERS[backend](model, folder)
    return write_engine(
        folder, backend=backend, device="CPU", precision=precision, entry=entry,
        inputs=case.inputs, outputs=case.outputs, options=options,
        source=hashlib.sha256(model.SerializeToString()).hexdigest(), built_with={"onnx": onnx.__version__},
        state="runnable",
    )


def _build_on_the_gpu(case: Case, model: onnx.ModelProto, backend: str, folder: Path, precision: str) -> Engine:
    """As a device gets it: exported here, and for TensorRT built from the recipe. Never run: no GPU was at hand."""
    from compress.export.tensorrt import build
    from compress.targets import targets
    from runtimes.built import built_engine

    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    target = dataclasses.replace(targets()[BUILT_ON_THE_GPU[backend]], float="fp32")    # the answers are float32's
    made = build(
        folder / "model.onnx", target, folder / "engine", inputs=case.inputs, outputs=case.outputs,
        precision=precision)  # type: ignore[arg-type]
    return built_engine(made, folder / "built")
