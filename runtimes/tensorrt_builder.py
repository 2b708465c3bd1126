"""Build one engine with TensorRT's or TensorRT for RTX's Python API; a script, run in a process of its own.

The host builds with it for TensorRT for RTX, a device for itself (:mod:`runtimes.built`). The libraries are found
through ``LD_LIBRARY_PATH``, which counts only if it was set before Python started; and a crash on an odd ONNX file must
not take the caller with it. Imports nothing of this project, so that it runs isolated.

Reads from the current folder ``model.onnx`` and ``job.json``::

    {"module": package, "python_path": folder or null, "parent": pid, "typing": "strong" or "weak",
     "flags": ["INT8", "FP16"], "workspace_mib": int or null, "profile": {input: [min, opt, max]}, "inspect": bool}

and ``timing.cache`` where there is one. Writes ``result.json``, ``{"error": text}`` or ``{"error": null, "version",
"fixed_addresses", "layers": {type: count}, "tensors": {dtype: count}, "warnings": [...]}``, and then also
``model.engine``, ``build.log``, and ``timing.cache`` and ``layers.json`` (the engine inspector's) where TensorRT gives
them.

"strong": what is int8, float16 and float32 is what the ONNX file says; all that TensorRT 11 and TensorRT for RTX know,
and TensorRT has had since 10.0. "weak", for TensorRT 8.6 to 10: the file is float32 (with Q/DQ), and ``flags`` are the
precisions the builder may choose from; the layers of ``FLOAT32_LAYERS`` are then held in float32.

Seen working: the strong way, by the builder of TensorRT for RTX 1.7.1 (API 11.4), on a machine without a GPU. The weak
way, the inspector and the timing cache were written from NVIDIA's API reference and never run on a GPU.
Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
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

FLOAT32_LAYERS = ("NORMALIZATION", "SOFTMAX", "REDUCE")  # sums that leave float16's range
FIRST_STRONG, LAST_WEAK = 10, 10                         # major releases of TensorRT

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
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.append((severity.name, text))

    logger = Logger()
    builder = trt.Builder(logger)
    network = create_network(trt, builder, job["typing"])
    parser = _parse(trt, network, logger)
    config = configure(trt, builder, network, job)
    plan = builder.build_serialized_network(network, config)
    del parser  # kept until here: the network points into its weights
    if plan is None:
        errors = [text for severity, text in messages if severity.endswith("ERROR")]
        raise RefusedError(errors[0] if errors else "no engine was built, and no reason was given")
    Path("model.engine").write_bytes(memoryview(plan))
    _keep_timings(config)
    if job["inspect"]:
        _inspect(trt, logger, plan)
    kept = [(severity, text) for severity, text in messages if severity != "VERBOSE" and not _VARYING.search(text)]
    Path("build.log").write_text("".join(f"[{severity}] {text}\n" for severity, text in kept), encoding="utf-8")
    return {"version": trt.__version__, "warnings": [text for severity, text in kept if severity == "WARNING"],
            **_describe(network)}  # fmt: skip


def create_network(trt: Any, builder: Any, typing: str) -> Any:
    """An empty network of explicit batch, with the flags that this release has for it."""
    flags, major = trt.NetworkDefinitionCreationFlag, int(trt.__version__.split(".")[0])
    rtx = trt.__name__ == "tensorrt_rtx"  # which counts its releases from 1
    if typing == "weak":
        if rtx or major > LAST_WEAK:
            raise RefusedError(f"{trt.__name__} {trt.__version__} builds strongly typed networks only, and this file "
                               "was exported for an older TensorRT: give the target's own version and export it again")
        return builder.create_network(1 << int(flags.EXPLICIT_BATCH) if major < FIRST_STRONG else 0)
    if not rtx and major < FIRST_STRONG:
        raise RefusedError(f"{trt.__name__} {trt.__version__} knows no strongly typed networks, and this file was "
                           "exported for TensorRT 10 or newer: give the target's own version and export it again")
    strong = getattr(flags, "STRONGLY_TYPED", None)  # no such flag: there is no other kind
    return builder.create_network(0 if strong is None else 1 << int(strong))


def configure(trt: Any, builder: Any, network: Any, job: dict[str, Any]) -> Any:
    """The builder's configuration: shapes, workspace, precisions, layer names for the inspector, earlier timings."""
    config = builder.create_builder_config()
    if job["workspace_mib"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_mib"] << 20)
    for name in job["flags"]:
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise RefusedError(f"{trt.__name__} {trt.__version__} has no builder flag {name}: export the model again")
        config.set_flag(flag)
    if "FP16" in job["flags"]:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        hold_in_float32(trt, network)
    if job["inspect"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, network, config, job["profile"])
    _use_timings(config)
    return config


def hold_in_float32(trt: Any, network: Any) -> None:
    """Of a weakly typed network, keep the layers in float32 that a ViT's fp16 engine collapses without."""
    types = {getattr(trt.LayerType, name) for name in FLOAT32_LAYERS if hasattr(trt.LayerType, name)}
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type in types and layer.get_output(0).dtype == trt.float32:
            layer.precision = trt.float32
            for index in range(layer.num_outputs):
                layer.set_output_type(index, trt.float32)


def _parse(trt: Any, network: Any, logger: Any) -> Any:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path("model.onnx").read_bytes()):
        error = parser.get_error(0)
        # TensorRT 8 says neither the node's name nor its operator.
        name, kind = (getattr(error, field, str)() for field in ("node_name", "node_operator"))
        said = error.desc().partition("\n[checkMacros")[0]  # what follows is the GPU that is not there
        raise RefusedError((f"node {name!r} ({kind}): " if name or kind else "") + " ".join(said.split()))
    return parser


def _add_profile(builder: Any, network: Any, config: Any, shapes: dict[str, list[list[int]]]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes[tensor.name]))
    config.add_optimization_profile(profile)


def _use_timings(config: Any) -> None:
    """Start from the timings of earlier builds on this GPU; TensorRT refuses those of another and begins anew."""
    file = Path("timing.cache")
    cache = config.create_timing_cache(file.read_bytes()) if file.is_file() else None
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)


def _keep_timings(config: Any) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        Path("timing.cache").write_bytes(memoryview(cache.serialize()))


def _inspect(trt: Any, logger: Any, plan: Any) -> None:
    """Write what the engine inspector says of the layers; it needs the GPU the engine is for."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise RefusedError("the engine that was built cannot be opened on this GPU")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    Path("layers.json").write_text(text, encoding="utf-8")


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
