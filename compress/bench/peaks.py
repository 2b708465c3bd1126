"""The peak rate of a machine in one precision: a large product of matrices, as an ordinary engine through the backend.

The engine is built here by the exporters that build every other, and timed by the same measuring process, on the device
too. What counts is what its profile says of the product: a precision it did not run in gives no peak. Measured once for
each machine, backend version, precision and number of threads, and kept in the cache folder unless others used the
machine meanwhile.

Source of the method: the roofline model, Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785; of its two
roofs only the arithmetic one is drawn, since how often an engine's weights come from memory is not known.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compress.bench.machines import Machine
from compress.bench.marks import FOREIGN
from compress.bench.record import Peak
from compress.errors import CompressError
from compress.targets import Target
from runtimes.arithmetic import is_arithmetic
from runtimes.arrays import write_arrays
from runtimes.engine import Engine, Precision
from runtimes.hashing import json_digest
from runtimes.spec import TensorSpec

FORMAT, VERSION = "compress.peak", 1
SIZES = {"CPU": 1024}  # rows and columns of all three matrices by device: a larger one is disturbed more often
SIZE = 4096  # of any other device
REPEATS = 3  # processes; the fastest counts
TIMEOUT_S = 300.0

# What a layer's precision is called -> the engine that is asked for it.
ENGINES: Mapping[str, Precision] = {"int8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}
# Facts that a machine's peak depends on; its clocks and temperatures of the moment are not among them.
_FACTS = ("cpu", "board", "arch", "flags", "cores", "cores_usable", "gpus", "npus", "backends", "l4t", "power_mode",
          "governor", "clock_max_mhz")  # fmt: skip


def machine_peak(
    target: Target,
    precision: str,
    machine: Machine,
    facts: Mapping[str, Any],
    folder: Path,
    *,
    threads: int,
    cache: Path | None = None,
    size: int | None = None,
) -> Peak | None:
    """The peak of ``machine`` through ``target``'s backend, from the cache where it was measured before.

    Args:
        target: chooses backend, device and the integers' scheme.
        precision: of a layer, one of :data:`ENGINES`.
        machine: where; an emulated one has no peak.
        facts: the machine's, as its record holds them.
        folder: for the processes' files.
        threads: CPU threads.
        cache: a folder; ``peaks`` in the cache folder by default.
        size: of the matrices; what suits the device by default.

    Returns:
        None where the backend has no such engine there, or ran the product in another precision.
    """
    if machine.emulated or precision not in ENGINES:
        return None
    size = size or SIZES.get(target.device, SIZE)
    known = {"machine": {key: facts.get(key) for key in _FACTS}, "backend": target.backend, "device": target.device,
             "scheme": target.scheme if precision == "int8" else None, "precision": precision, "threads": threads,
             "size": size}  # fmt: skip
    file = (cache or _cache()) / f"{json_digest(known)[:32]}.json"
    found = _read(file, known)
    if found is None:
        try:
            found = _measure(target, precision, machine, folder, threads, size)
        except machine.lost:
            raise
        except CompressError:  # no kernels of this precision there, or too little memory
            return None
        if found is not None and not found.busy:
            _write(file, {"format": FORMAT, "version": VERSION, "of": known, "peak": asdict(found)})
    return found


def datasheet_peak(target: Target, precision: str) -> Peak | None:
    """The vendor's own rate in ``targets.toml``, of two operations a multiply-accumulate."""
    rate = {"int8": target.int8_tops, "f16": target.fp16_tflops}.get(precision)
    if rate is None:
        return None
    unit = "TOPS" if precision == "int8" else "TFLOPS"
    return Peak(macs_per_s=rate * 1e12 / 2, source="datasheet", note=f"{rate:g} {unit} dense, the row {target.name}")


def _measure(
    target: Target, precision: str, machine: Machine, folder: Path, threads: int, size: int
) -> Peak | None:
    folder = folder / f"{target.backend}-{precision}"
    engine = _build(target, ENGINES[precision], machine, folder, size)
    write_arrays(folder / "feed.npz", {"x": np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)})
    timing = {"feed": str(folder / "feed.npz"), "warmup_s": 0.2, "duration_s": 0.5, "min_runs": 3,
              "scenario": "single_stream", "samples_per_query": None}  # fmt: skip
    job = {"engines": {"product": str(engine.path.resolve())}, "threads": threads, "latency": timing, "outputs": None,
           "layers": True}  # fmt: skip
    results, times_us = [], list[float]()
    product: Mapping[str, Any] = {}
    for repeat in range(REPEATS):
        results.append(machine.agent(job, folder / f"process-{repeat}", TIMEOUT_S))
        product = next((layer for layer in results[-1]["layers"] if is_arithmetic(layer["type"])), {})
        if product.get("precision") != precision:
            return None
        if product["time_us"]:
            times_us.append(product["time_us"])
    if target.device == "CPU":  # elsewhere a run copies the matrices to the device and back, which takes longer
        times_us += [time / 1e3 for result in results for time in result["latencies_ns"]]
    if not times_us:
        return None
    shares = [(result.get("telemetry") or {}).get("foreign_cpu_share") for result in results]
    foreign = max((share for share in shares if share is not None), default=0.0)
    kernel = re.search(r"kernel [^,;]+", product.get("seen") or "")
    parts = [
        f"product of {size} x {size} matrices, which ran in {precision} as {product['type']}",
        *([kernel[0]] if kernel else []), f"{threads} thread{'s' if threads != 1 else ''}",
        f"the fastest run of {REPEATS} processes",
        *([f"others took {foreign:.0%} of the machine meanwhile: not kept"] if foreign > FOREIGN else []),
    ]  # fmt: skip
    return Peak(macs_per_s=size**3 / (min(times_us) / 1e6), source="measured", note=", ".join(parts),
                busy=foreign > FOREIGN)


def _build(target: Target, precision: Precision, machine: Machine, folder: Path, size: int) -> Engine:
    from compress.export import BUILDERS

    folder.mkdir(parents=True, exist_ok=True)
    onnx = write_product(folder / "product.onnx", target, size, quantized=precision == "int8")
    specs = [TensorSpec(name=name, dtype="float32", shape=(size, size)) for name in ("x", "y")]
    build = importlib.import_module(BUILDERS[target.backend]).build
    engine: Engine = build(
        onnx, target, folder / "engine", inputs=specs[:1], outputs=specs[1:], precision=precision
    )  # fmt: skip
    if engine.state == "build on the device":
        if machine.build is None:
            raise CompressError(f"an engine for {target.name} is built on the device, and there is nothing to build it")
        engine = machine.build(engine, folder / "built")
    return engine


def write_product(path: Path, target: Target, size: int, *, quantized: bool) -> Path:
    """An ONNX file with ``y = x @ w``, all three ``(size, size)``; quantized as ``target``'s scheme does it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from compress.quantize.schemes import get_scheme

    rng = np.random.default_rng(1)
    constants: dict[str, Any] = {"w": rng.normal(size=(size, size)).astype(np.float32)}
    nodes, operands = [], ["x", "w"]
    if quantized:
        scheme = get_scheme(target.scheme)
        weights, zero = scheme.weights, 128 if scheme.activations.dtype == "uint8" else 0
        constants = {
            "w": rng.integers(weights.low, weights.high, (size, size), endpoint=True).astype(np.int8),
            "x_scale": np.float32(0.04), "x_zero": np.asarray(zero, scheme.activations.dtype),
            "w_scale": np.full(size, 0.01, np.float32), "w_zero": np.zeros(size, np.int8),
        }  # fmt: skip
        nodes = [helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="quantize"),
                 helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], name="dequantize_x"),
                 helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], name="dequantize_w", axis=1)]
        operands = ["xd", "wd"]
    nodes.append(helper.make_node("MatMul", operands, ["y"], name="product"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:],
                              [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    opset = helper.make_opsetid("", target.opset)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def _cache() -> Path:
    from compress.export.rtx_libraries import cache_folder

    return cache_folder() / "peaks"


def _read(file: Path, known: Mapping[str, Any]) -> Peak | None:
    """The peak in a file of the cache; None where it is missing, damaged, or of something else."""
    import msgspec

    try:
        record = json.loads(file.read_bytes())
        if (record["format"], record["version"]) != (FORMAT, VERSION) or record["of"] != json.loads(json.dumps(known)):
            return None
        return msgspec.convert(record["peak"], Peak)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, record: Mapping[str, Any]) -> None:
    """Keep a peak; a cache that cannot be written is done without."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
