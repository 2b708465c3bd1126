"""What every quantizer's result is run by, whoever made it: the backend itself with the same settings for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from compress.model import Model

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The files a quantizer made, graph -> ``.xml`` or ``.onnx``, and the options of the backend that belong to it."""

    backend: str
    files: Mapping[str, Path]
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)      # graph -> its own

    def to_json(self) -> dict[str, Any]:
        return {"backend": self.backend, "files": {name: str(file) for name, file in self.files.items()},
                "options": {name: dict(own) for name, own in self.options.items()}}  # fmt: skip

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Result:
        files = {name: Path(file) for name, file in made["files"].items()}
        return cls(backend=made["backend"], files=files, options=made["options"])

    @property
    def size_bytes(self) -> int:
        """Of the models with their weights."""
        return sum(path.stat().st_size for file in self.files.values() for path in parts(file))

    def open(self, graph: str, threads: int) -> Run:
        """A function from feed to outputs."""
        opener = {"openvino": _openvino, "onnxruntime": _onnxruntime}[self.backend]
        return opener(self.files[graph], self.options.get(graph, {}), threads)


def parts(file: Path) -> list[Path]:
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def found(folder: Path, backend: str) -> Result:
    """What a quantizer left in ``folder``, one folder a graph; an engine's record tells its options."""
    files, options = {}, {}
    for graph in sorted(path for path in folder.iterdir() if path.is_dir()):
        files[graph.name] = next(graph / name for name in ("model.xml", "model.onnx") if (graph / name).exists())
        if (record := graph / "engine.json").exists():
            options[graph.name] = json.loads(record.read_text(encoding="utf-8"))["options"]
    return Result(backend=backend, files=files, options=options)


def _openvino(file: Path, options: Mapping[str, str], threads: int) -> Run:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(file, "CPU", {**settings, **options})
    request = compiled.create_infer_request()
    names = {name: at for at, port in enumerate(compiled.outputs) for name in port.names}
    inputs = {name: at for at, port in enumerate(compiled.inputs) for name in port.names}

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {inputs[name]: array for name, array in feed.items() if name in inputs}
        request.infer(given, share_inputs=True)
        outputs = [request.get_output_tensor(at).data.copy() for at in range(len(compiled.outputs))]
        return {name: outputs[at] for name, at in names.items()}

    return run


def _onnxruntime(file: Path, options: Mapping[str, str], threads: int) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 4
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    inputs = {port.name for port in session.get_inputs()}

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: array for name, array in feed.items() if name in inputs}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def whole(model: Model, runs: Mapping[str, Run]) -> Run:
    """``model`` from its inputs to its outputs, with ``runs`` in place of some or all of its graphs in torch."""
    from compress.program import chain_of, model_runner

    if len(model.graphs) == 1 and model.chain is None:
        return next(iter(runs.values())) if runs else model_runner(model)
    return chain_of(model, runs).run
