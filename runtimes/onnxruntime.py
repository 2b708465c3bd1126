"""Run a self-contained ONNX model on the CPU with ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.backends import Layer, Runner, read_files, zero_feed
from runtimes.engine import Engine
from runtimes.errors import RuntimesError
from runtimes.onnxfile import refuse_external_data
from runtimes.spec import Feed

# The session options an engine may set: how to compute, never where to read or write.
OPTIONS = frozenset({
    "mlas.enable_gemm_fastmath_arm64_bfloat16", "session.enable_quant_qdq_cleanup", "session.intra_op.allow_spinning",
    "session.qdqisint8allowed", "session.set_denormal_as_zero", "session.x64quantprecision",
})

# ONNX Runtime's name in a profile -> ours.
PRECISIONS = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8",
              "int32": "i32", "int64": "i64"}
PROFILED_RUNS = 10
FATAL_ONLY = 4      # its log goes to stderr; what went wrong arrives as an exception


def open_runner(engine: Engine, files: Mapping[str, bytes], threads: int | None) -> Runner:
    return ONNXRuntimeRunner(engine, files, threads)


class ONNXRuntimeRunner:
    """One session on the CPU provider; it may be run from several threads at once."""

    def __init__(self, engine: Engine, files: Mapping[str, bytes], threads: int | None) -> None:
        if engine.device != "CPU":
            raise RuntimesError(f"engine {engine.path} is for {engine.device}: backend onnxruntime runs on CPU only")
        self._engine, self._threads = engine, threads
        self._session = _open(engine, files, self._options())
        self._names = [spec.name for spec in engine.outputs]
        _check_names(engine, "input", [spec.name for spec in engine.inputs], self._session.get_inputs())
        _check_names(engine, "output", self._names, self._session.get_outputs())

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        try:
            results = self._session.run(self._names, feed)
        except Exception as error:  # its exceptions share no base class
            raise RuntimesError(f"engine {self._engine.path}: ONNX Runtime cannot run this feed: {error}") from error
        return dict(zip(self._names, map(_owned, results), strict=True))

    def layers(self, feed: Feed | None = None) -> list[Layer]:
        feed = zero_feed(self._engine) if feed is None else feed
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _open(self._engine, read_files(self._engine), options)
            for _ in range(PROFILED_RUNS + 1):
                session.run(self._names, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_bytes())
        return _layers(event for event in events if event.get("cat") == "Node" and "op_name" in event["args"])

    def versions(self) -> dict[str, str]:
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def close(self) -> None:
        del self._session

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.inter_op_num_threads = 1
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        for key, value in self._engine.options.items():
            if key not in OPTIONS:
                raise RuntimesError(
                    f"engine {self._engine.path} sets the ONNX Runtime option {key!r}, which an engine may not set: "
                    f"export it again with some of {sorted(OPTIONS)}"
                )
            options.add_session_config_entry(key, value)
        return options


def _open(engine: Engine, files: Mapping[str, bytes], options: Any) -> Any:
    import onnxruntime

    model = files[engine.entry]
    refuse_external_data(model, str(engine.path / engine.entry))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise RuntimesError(f"engine {engine.path}: ONNX Runtime cannot open it: {error}") from error


def _owned(array: np.ndarray) -> np.ndarray:
    return array if array.flags.owndata else array.copy()   # else it is a view of memory the session allocated


def _check_names(engine: Engine, kind: str, names: list[str], found: Iterable[Any]) -> None:
    known = [value.name for value in found]
    if not set(names) <= set(known) or (kind == "input" and len(names) != len(known)):
        raise RuntimesError(
            f"engine {engine.path}: its record names the {kind}s {names}, the model has {known}: export it again"
        )


def _layers(events: Iterable[Mapping[str, Any]]) -> list[Layer]:
    """One layer per node of a profile; the time is the mean without the first run."""
    nodes: dict[tuple[str, str], tuple[Mapping[str, Any], list[float]]] = {}
    for event in events:
        key = (event["args"]["node_index"], event["name"])
        nodes.setdefault(key, (event["args"], []))[1].append(float(event["dur"]))
    return [
        Layer(
            name=name.removesuffix("_kernel_time"),
            type=args["op_name"],
            precision=_precision(args),
            time_us=float(np.mean(times[1:] or times)),
        )
        for (_, name), (args, times) in nodes.items()
    ]


def _precision(args: Mapping[str, Any]) -> str:
    """int8 where an input is (MatMulIntegerToFloat, QLinearConv, a quantized Gather, Q, DQ), else the result's type."""
    inputs = [PRECISIONS.get(kind, kind) for tensor in args["input_type_shape"] for kind in tensor]
    outputs = [PRECISIONS.get(kind, kind) for tensor in args["output_type_shape"] for kind in tensor]
    return "int8" if "int8" in inputs else (outputs or inputs or ["unknown"])[0]
