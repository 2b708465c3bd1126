"""Build one strongly typed engine with TensorRT's Python API; a script, run in a process of its own.

The libraries are found through ``LD_LIBRARY_PATH``, which counts only if it was set before Python started; and a crash
on an odd ONNX file must not take the pipeline with it. Imports nothing of this project.

Reads from the current folder ``model.onnx`` and ``job.json``, ``{"module", "python_path", "parent", "profile": {input:
[min, opt, max]}}``; writes ``result.json``, ``{"error": text}`` or ``{"error": null, "version", "fixed_addresses",
"layers": {type: count}, "tensors": {dtype: count}, "warnings": [...]}``, and then also ``model.engine`` and
``build.log``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_VARYING = re.compile(r"input filename|time\b|second|\bms\b|took|MemUsage|peak memory|thread", re.IGNORECASE)


class RefusedError(Exception):
    """What TensorRT said when it would not build."""


def main() -> None:
    fixed = fix_addresses()
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    die_with(job["parent"])
    try:
        result = {"error": None, "fixed_addresses": fixed, **build(job)}
    except RefusedError as error:
        result = {"error": str(error)}
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Parse, build and write the engine and its log, from which all that varies between runs is left out."""
    if job["python_path"]:
        sys.path.insert(0, job["python_path"])
    try:
        trt = importlib.import_module(job["module"])
    except (ImportError, OSError) as error:
        raise RefusedError(f"{job['module']} cannot be imported: {error}") from error
    messages: list[tuple[str, str]] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, text: str) -> None:
            messages.append((severity.name, text))

    builder = trt.Builder(Logger())
    network, parser = _parse(trt, builder)
    config = builder.create_builder_config()
    _add_profile(builder, network, config, job["profile"])
    plan = builder.build_serialized_network(network, config)
    del parser  # kept until here: the network points into its weights
    if plan is None:
        errors = [text for severity, text in messages if severity.endswith("ERROR")]
        raise RefusedError(errors[0] if errors else "no engine was built, and no reason was given")
    Path("model.engine").write_bytes(memoryview(plan))
    kept = [(severity, text) for severity, text in messages if severity != "VERBOSE" and not _VARYING.search(text)]
    Path("build.log").write_text("".join(f"[{severity}] {text}\n" for severity, text in kept), encoding="utf-8")
    return {"version": trt.__version__, "warnings": [text for severity, text in kept if severity == "WARNING"],
            **_describe(network)}  # fmt: skip


def _parse(trt: Any, builder: Any) -> tuple[Any, Any]:
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # no such flag: there is no other kind
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(Path("model.onnx").read_bytes()):
        error = parser.get_error(0)
        name, kind = error.node_name(), error.node_operator()
        said = error.desc().partition("\n[checkMacros")[0]  # what follows is the GPU that is not there
        raise RefusedError((f"node {name!r} ({kind}): " if name or kind else "") + " ".join(said.split()))
    return network, parser


def _add_profile(builder: Any, network: Any, config: Any, shapes: dict[str, list[list[int]]]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes[tensor.name]))
    config.add_optimization_profile(profile)


def _describe(network: Any) -> dict[str, Any]:
    layers: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        layers[layer.type.name] += 1
        tensors.update(layer.get_output(index).dtype.name for index in range(layer.num_outputs))
    return {"layers": dict(sorted(layers.items())), "tensors": dict(sorted(tensors.items()))}


def fix_addresses() -> bool:
    """Start again without address space randomisation; False where the kernel or a sandbox does not allow it.

    TensorRT for RTX numbers some tensors in the order of their addresses, so two builds differed in those names.
    """
    if sys.platform != "linux":
        return False
    addr_no_randomize, ask = 0x0040000, 0xFFFFFFFF  # <sys/personality.h>
    libc = ctypes.CDLL(None)
    persona = libc.personality(ask)
    if persona == -1:
        return False
    if not persona & addr_no_randomize and libc.personality(persona | addr_no_randomize) != -1:
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv])
    return bool(persona & addr_no_randomize)


def die_with(parent: int) -> None:
    """Ask the kernel to end this process with the one that started it, even if that one is killed."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit(1)


if __name__ == "__main__":
    main()
