"""What ``Session.run`` adds to the vendor's own call, measured in one run, the two interleaved.

    python benchmarks/session_overhead.py [BUNDLE] [--seconds 2]

Without a bundle a small float32 network is built (needs ``onnx``): image (1, 3, 224, 224) and tokens (1, 16), of about
a millisecond. The vendor's call is what its documentation shows: ``compiled_model(feed)`` for OpenVINO and
``session.run(None, feed)`` for ONNX Runtime, with the same threads and options, results as numpy arrays.
What is added is the median over rounds of the difference within a round; ``noise_us`` is the same of a second copy of
the vendor's model, which adds nothing: where that is not near zero the machine is too busy to tell, and only
``added_p10_us``, the difference of the calls' 10th percentiles, says something.
Limit: the larger of 2 % and 100 microseconds. Prints JSON; exit code 1 beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from runtimes.backends import open_engine
from runtimes.engine import Engine, read_engine, write_engine
from runtimes.machine import machine_facts
from runtimes.session import Session
from runtimes.spec import Dim, TensorSpec

THREADS = 1
WARMUP_ROUNDS = 10
LIMIT_US, LIMIT_SHARE = 100.0, 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="a bundle whose engines are measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each engine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines = bundle_engines(Path(options.bundle)) if options.bundle else small_engines(Path(folder))
        rows = [overhead(engine, options.seconds) for engine in engines]
    print(json.dumps({"rows": rows, "limit": {"us": LIMIT_US, "share": LIMIT_SHARE}, "threads": THREADS,
                      "machine": machine_facts()}, indent=1))
    return 0 if all(row["within"] for row in rows) else 1


def overhead(engine: Engine, seconds: float) -> dict[str, Any]:
    """Rounds of the vendor's call, ours and the vendor's again, in turning order, and what the later two add."""
    rng = np.random.default_rng(0)
    feed = {spec.name: (rng.random(spec.sized()) * 2).astype(spec.dtype) for spec in engine.inputs}
    open_vendor = {"openvino": openvino_call, "onnxruntime": onnxruntime_call}[engine.backend]
    with Session(engine, open_engine(engine, threads=THREADS), "here") as session:
        calls = [open_vendor(engine, feed), lambda: session.run(feed), open_vendor(engine, feed)]
        order = [0, 1, 2]
        times: list[list[int]] = [[], [], []]
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for index in order:
                start = time.perf_counter_ns()
                calls[index]()
                times[index].append(time.perf_counter_ns() - start)
            order = [*order[1:], order[0]]
    rounds_us = np.array(times)[:, WARMUP_ROUNDS:] / 1e3
    vendor_us, session_us, _ = np.median(rounds_us, axis=1).tolist()
    added_us, noise_us = np.median(rounds_us[1:] - rounds_us[0], axis=1).tolist()
    undisturbed_us = np.percentile(rounds_us, 10, axis=1)
    return {
        "backend": engine.backend, "precision": engine.precision, "digest": engine.digest,
        "version": version(engine.backend), "rounds": rounds_us.shape[1], "vendor_us": round(vendor_us, 2),
        "session_us": round(session_us, 2), "added_us": round(added_us, 2), "noise_us": round(noise_us, 2),
        "added_p10_us": round(float(undisturbed_us[1] - undisturbed_us[0]), 2),
        "ratio": round(1 + added_us / vendor_us, 4),
        "within": added_us <= max(LIMIT_US, LIMIT_SHARE * vendor_us),
    }


def openvino_call(engine: Engine, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", **engine.options, "INFERENCE_NUM_THREADS": THREADS}
    model = core.compile_model(core.read_model(engine.path / engine.entry), engine.device, settings)
    return lambda: model(feed)


def onnxruntime_call(engine: Engine, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    for key, value in engine.options.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(engine.path / engine.entry, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def bundle_engines(bundle: Path) -> list[Engine]:
    records = sorted((bundle / "engines").glob("*/*/engine.json"))
    engines = [read_engine(record.parent) for record in records]
    return [engine for engine in engines if engine.backend in ("openvino", "onnxruntime") and engine.device == "CPU"]


def small_engines(folder: Path) -> list[Engine]:
    """A patch convolution over the image, an embedding of the tokens, joined and projected."""
    import onnx
    import openvino
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {"patch": (96, 3, 16, 16), "table": (100, 96), "head": (96, 10)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["image", "patch"], ["patches"], strides=[16, 16]),
        helper.make_node("GlobalAveragePool", ["patches"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["seen"]),
        helper.make_node("Gather", ["table", "tokens"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "axes"], ["read"], keepdims=0),
        helper.make_node("Add", ["seen", "read"], ["joined"]),
        helper.make_node("MatMul", ["joined", "head"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224]),
         helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [*tensors, numpy_helper.from_array(np.array([1]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)

    batch, length = Dim("batch", 1, 1, 8), Dim("length", 1, 16, 32)
    inputs = (TensorSpec(name="image", dtype="float32", shape=(batch, 3, 224, 224), modality="image"),
              TensorSpec(name="tokens", dtype="int64", shape=(batch, length), modality="text"))
    outputs = (TensorSpec(name="logits", dtype="float32", shape=(batch, 10)),)
    engines = []
    for backend, entry in (("openvino", "model.xml"), ("onnxruntime", "model.onnx")):
        (folder / backend).mkdir()
        if backend == "openvino":
            ir = openvino.Core().read_model(model.SerializeToString())
            openvino.save_model(ir, folder / backend / entry, compress_to_fp16=False)
        else:
            (folder / backend / entry).write_bytes(model.SerializeToString())
        options = {"INFERENCE_PRECISION_HINT": "f32"} if backend == "openvino" else {}
        engines.append(write_engine(
            folder / backend, backend=backend, device="CPU", precision="fp32", entry=entry, inputs=inputs,
            outputs=outputs, options=options, source="", built_with={}, state="runnable"))
    return engines


if __name__ == "__main__":
    sys.exit(main())
