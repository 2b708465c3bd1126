"""Build an ONNX Runtime engine: the ONNX file itself, opened once so that a broken model fails here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.errors import CompressError
from compress.export.building import DATA, OnnxFile, import_backend, new_folder, read_onnx
from compress.export.onnxdata import light_model
from compress.export.onnxruntime_lstm import quantize_lstms
from compress.quantize.schemes import get_scheme
from compress.targets import Target
from runtimes.engine import Engine, Precision, write_engine
from runtimes.spec import TensorSpec


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

    Raises:
        CompressError: if the file, its inputs or the precision do not fit (``read_onnx``), or ONNX Runtime refuses it.
    """
    source = read_onnx(onnx, target, inputs=inputs, outputs=outputs, precision=precision)
    runtime = import_backend("onnxruntime", target)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4  # what it has to say is in the exception
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(into.absolute()))
    settings.add_session_config_entry("session.disable_prepacking", "1")  # copies of the weights, for a run
    with new_folder(into):
        states = precision == "int8" and get_scheme(target.scheme).states is not None
        light = _rewritten(source, into) if states else None
        if light is None:
            source.copy_to(into / DATA)
            light = source.light.SerializeToString(deterministic=True)
        try:
            runtime.InferenceSession(light, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding has ten exception classes with no base but this
            raise CompressError(f"ONNX Runtime refuses {onnx}: {str(error).strip()}{_remedy(source)}") from error
        return write_engine(
            into,
            backend="onnxruntime",
            device=target.device,
            precision=precision,
            entry=DATA,
            inputs=inputs,
            outputs=outputs,
            options={},
            source=source.digest,
            built_with={"onnxruntime": runtime.__version__},
            state="runnable",
        )


def _remedy(source: OnnxFile) -> str:
    """What to do about a file that is refused, where it is known."""
    from onnx import TensorProto

    if all(tensor.data_type != TensorProto.BFLOAT16 for tensor in source.light.graph.initializer):
        return ""
    return "; it has few kernels for bfloat16, which this model holds: cast it to float32 before it is saved"


def _rewritten(source: OnnxFile, into: Path) -> bytes | None:
    """The light model with LSTMs in int8, whose data is in ``into``; None where there are none."""
    from onnx import load_model_from_string

    if all(node.op_type != "LSTM" for node in source.light.graph.node):
        return None
    model = load_model_from_string(source.read())
    if not quantize_lstms(model):
        return None
    content: bytes = model.SerializeToString(deterministic=True)
    (into / DATA).write_bytes(content)
    light: bytes = light_model(content, DATA).SerializeToString(deterministic=True)
    return light
