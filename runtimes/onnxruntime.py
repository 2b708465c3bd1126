"""Run a self-contained ONNX model on the CPU with ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.arithmetic import is_arithmetic, macs
from runtimes.backends import Layer, Runner, read_files, zero_feed
from runtimes.engine import Engine
from runtimes.errors import LimitError, RuntimesError
from runtimes.onnxfile import refuse_external_data
from runtimes.onnxgraph import Node, read_nodes, read_shapes
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
LARGEST_READ_BACK = 1_000_000_000   # bytes of a model whose optimised graph is written out and read for its layers
BLOCKED = "_nchwc"  # ends the name of a convolution in blocks of channels, which begins with its output's
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

    def run_within(self, feed: Feed, timeout_s: float) -> dict[str, np.ndarray]:
        """As :meth:`run`, stopped after ``timeout_s``; the layer it is in is computed to its end."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = FATAL_ONLY
        timer = threading.Timer(timeout_s, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        where = f"engine {self._engine.path}"
        try:
            results = self._session.run(self._names, feed, options)
        except Exception as error:  # its exceptions share no base class
            if options.terminate:
                raise LimitError(f"{where}: not done after {timeout_s} s, and stopped") from error
            raise RuntimesError(f"{where}: ONNX Runtime cannot run this feed: {error}") from error
        finally:
            timer.cancel()
        return dict(zip(self._names, map(_owned, results), strict=True))

    def layers(self, feed: Feed | None = None) -> list[Layer]:
        feed = zero_feed(self._engine) if feed is None else feed
        files = read_files(self._engine)
        with tempfile.TemporaryDirectory() as folder:
            options, optimised = self._options(), Path(folder) / "optimised.onnx"
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            if len(files[self._engine.entry]) <= LARGEST_READ_BACK:
                options.optimized_model_filepath = str(optimised)
            session = _open(self._engine, files, options)
            for _ in range(PROFILED_RUNS + 1):
                session.run(self._names, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_bytes())
            graph = Graph(files[self._engine.entry], optimised.read_bytes() if optimised.is_file() else b"")
        return _layers((event for event in events if event.get("cat") == "Node" and "op_name" in event["args"]), graph)

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


def _layers(events: Iterable[Mapping[str, Any]], graph: Graph) -> list[Layer]:
    """One layer per node of a profile; the time is the median without the first run."""
    nodes: dict[tuple[str, str], tuple[Mapping[str, Any], list[float]]] = {}
    for event in events:
        key = (event["args"]["node_index"], event["name"])
        nodes.setdefault(key, (event["args"], []))[1].append(float(event["dur"]))
    return [_layer(name.removesuffix("_kernel_time"), args, times, graph) for (_, name), (args, times) in nodes.items()]


def _layer(name: str, args: Mapping[str, Any], times: list[float], graph: Graph) -> Layer:
    kind, node = args["op_name"], graph.ran.get(name)
    inputs, outputs = _tensors(args, "input_type_shape"), _tensors(args, "output_type_shape")
    precisions = [kind for kind, _ in inputs]
    counted, count = is_arithmetic(kind), None
    if counted:
        turned = node is not None and node.integers.get("transA") == 1
        shapes = [shape for _, shape in inputs]
        shapes[1:1] = graph.constants(node) if node else []     # the profile leaves out those that were packed
        count = macs(kind, shapes, outputs[0][1] if outputs else None, transposed=turned)
    return Layer(
        name=name,
        type=kind,
        precision=_precision(node, precisions, [kind for kind, _ in outputs]),
        time_us=float(np.median(times[1:] or times)),
        nodes=(name,) if name in graph.asked else graph.nodes_of(node) if node else (),
        macs=count,
        seen=graph.seen(node, precisions) if counted and node and "int8" not in precisions else None,
    )


def _precision(node: Node | None, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """int8 where an input is: MatMulIntegerToFloat, QLinearConv, a quantized Gather, Q, DQ; else the result's type.

    Weights of fewer bits lie in bytes, and their node tells: MatMulNBits multiplies them with what it makes int8.
    """
    if node is not None and "bits" in node.integers:
        return f"int{node.integers['bits']}"
    return "int8" if "int8" in inputs else [*outputs, *inputs, "unknown"][0]


def _tensors(args: Mapping[str, Any], key: str) -> list[tuple[str, tuple[int, ...]]]:
    """Precision and shape of each tensor, as a profile gives them; packed constants are left out by ONNX Runtime."""
    pairs = [(kind, shape) for tensor in args[key] for kind, shape in tensor.items()]
    return [(PRECISIONS.get(kind, kind), tuple(shape)) for kind, shape in pairs]


class Graph:
    """The graph ONNX Runtime made of a model, beside the model's own: which operators a layer is of, and why not int8.

    ``asked`` are the model's nodes and ``ran`` those of the optimised graph, by name; without that graph ``ran`` is
    empty and nothing is told.
    """

    def __init__(self, model: bytes, optimised: bytes) -> None:
        original, made = read_nodes(model), read_nodes(optimised)
        self._constants = read_shapes(optimised)
        self.asked = {node.name: node for node in original if node.name}
        self.ran = {node.name: node for node in made}
        self._makers = {output: node.name for node in original for output in node.outputs}
        self._sources = {output: node for node in made for output in node.outputs}
        self._readers: dict[str, list[Node]] = {}
        for node in made:
            for value in node.inputs:
                self._readers.setdefault(value, []).append(node)

    def constants(self, node: Node) -> list[tuple[int, ...]]:
        """Shapes of the constants among a node's inputs, in their order; of its first input no shape."""
        return [self._constants[value] for value in node.inputs[1:] if value in self._constants]

    def nodes_of(self, node: Node, depth: int = 2) -> tuple[str, ...]:
        """The model's operator that makes what ``node`` makes; of a node added, those of its readers or sources."""
        if node.name in self.asked:
            return (node.name,)
        if (blocked := self._makers.get(node.name.removesuffix(BLOCKED))) and node.name.endswith(BLOCKED):
            return (blocked,)
        found = [name for output in node.outputs if (name := self._makers.get(output))]
        if found or not depth:
            return tuple(found)
        readers = [reader for output in node.outputs for reader in self._readers.get(output, [])]
        sources = [self._sources[value] for value in node.inputs if value in self._sources]
        for near in (readers, sources):
            names = tuple(dict.fromkeys(name for other in near for name in self.nodes_of(other, depth - 1)))
            if names:
                return names
        return ()

    def seen(self, node: Node, precisions: Sequence[str]) -> str:
        """What the optimised graph shows of a node that runs in float; ONNX Runtime gives no reason of its own.

        The two it has are those of its Q/DQ fusion (core/optimizer/qdq_transformer/selectors_actions): an int8 Conv
        takes a QuantizeLinear behind it, and an int8 Gemm no float bias.
        """
        makers = [self._sources.get(value) for value in node.inputs]
        sources = ["a constant or input" if maker is None else maker.op for maker in makers]
        readers = [reader.op for output in node.outputs for reader in self._readers.get(output, [])]
        told = f"{'/'.join(dict.fromkeys(precisions[:2]))} operands from {' and '.join(sources[:2])}"
        told += f", result read by {' and '.join(dict.fromkeys(readers)) or 'no node'}"
        if sources[:2] == ["DequantizeLinear"] * 2:
            if "Conv" in node.op and "QuantizeLinear" not in readers:
                told += "; an int8 Conv needs a QuantizeLinear right behind it"
            elif "Gemm" in node.op and len(node.inputs) > 2 and sources[2] != "DequantizeLinear":
                told += "; an int8 Gemm takes no float bias"
        return told
