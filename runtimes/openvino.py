"""Run an OpenVINO IR (``.xml`` and ``.bin``) on a CPU, GPU or NPU with OpenVINO's runtime."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from runtimes.arithmetic import is_arithmetic, macs
from runtimes.backends import COMPONENT_MARK, Layer, Runner, read_files, zero_feed
from runtimes.engine import Engine
from runtimes.errors import DeviceGone, LimitError, RuntimesError
from runtimes.spec import Feed

# The options an engine may set: how to compute, never where to read or write (CACHE_DIR, CONFIG_FILE).
OPTIONS = frozenset({
    "CPU_DENORMALS_OPTIMIZATION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING",
    "EXECUTION_MODE_HINT", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "NUM_STREAMS", "PERFORMANCE_HINT",
    "SCHEDULING_CORE_TYPE", "SNIPPETS_MODE",
})

# OpenVINO's name -> ours, where they differ. A layer with compressed weights has the precision of these.
PRECISIONS = {"u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4", "boolean": "bool"}
PROFILED_RUNS = 10
KEPT = 2                # tensors of each output that a request keeps to write again


def open_runner(engine: Engine, files: Mapping[str, bytes], threads: int | None) -> Runner:
    return OpenVINORunner(engine, files, threads)


class OpenVINORunner:
    """One compiled model, and as many infer requests as it can run at once; callers beyond those wait for one."""

    def __init__(self, engine: Engine, files: Mapping[str, bytes], threads: int | None) -> None:
        self._engine = engine
        self._settings = _settings(engine, threads)
        self._compiled = _compile(engine, files, self._settings)
        self._inputs = _positions(engine, "input", [s.name for s in engine.inputs], self._compiled.inputs)
        self._outputs = _positions(engine, "output", [s.name for s in engine.outputs], self._compiled.outputs)
        self._most = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free = threading.Semaphore(self._most)
        self._requests = [_Request(self._compiled)]     # the others are made when first needed

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        arrays = {position: feed[name] for name, position in self._inputs.items()}
        with self._free:
            request = self._take()
            try:
                results = request.results()
                request.own.infer(request.changed(arrays), share_inputs=True, share_outputs=True)   # nothing is copied
            except RuntimeError as error:
                request.forget()
                raise self._failure(error) from error
            finally:
                self._requests.append(request)
        return self._filled({name: results[position].data for name, position in self._outputs.items()})

    def run_within(self, feed: Feed, timeout_s: float) -> dict[str, np.ndarray]:
        """As :meth:`run`, for at most ``timeout_s``; a run that takes longer goes on to its end with nobody waiting.

        It is not cancelled: OpenVINO 2026.4 then answers later feeds of another shape with what has the cancelled
        one's. Runs after it wait for it, each for its own ``timeout_s``.
        """
        arrays = {position: feed[name] for name, position in self._inputs.items()}
        until = time.monotonic() + timeout_s
        if not self._free.acquire(timeout=timeout_s):
            raise LimitError(f"engine {self._engine.path}: still busy with earlier runs after {timeout_s} s")
        request, late = self._take(), False
        try:
            results = request.results()
            request.own.start_async(request.changed(arrays), share_inputs=True)
            late = not request.own.wait_for(max(1, round((until - time.monotonic()) * 1e3)))
            if late:
                threading.Thread(target=self._see_off, args=(request, arrays), name="runtimes-late").start()
                raise LimitError(f"engine {self._engine.path}: not done after {timeout_s} s")
            request.own.wait()      # raises what went wrong
            return self._filled({name: results[position].data for name, position in self._outputs.items()})
        except RuntimeError as error:
            request.forget()
            raise self._failure(error) from error
        finally:
            if not late:
                self._give_back(request)

    def _filled(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs; OpenVINO 2026.4 gives an empty one, and says nothing, where some int8 kernels do not run."""
        for name, array in outputs.items():
            if not array.size:
                raise RuntimesError(
                    f"engine {self._engine.path}: OpenVINO gives output {name!r} no values: use another target's "
                    "engine, or keep the layers before that output in float"
                )
        return outputs

    def _see_off(self, request: _Request, arrays: Mapping[int, np.ndarray]) -> None:
        """Wait for a run that nobody waits for; ``arrays``, which it reads, must live as long."""
        with suppress(RuntimeError):    # nobody is there to be told
            request.own.wait()
        self._give_back(request)

    def _give_back(self, request: _Request) -> None:
        self._requests.append(request)
        self._free.release()

    def _take(self) -> _Request:
        try:
            return self._requests.pop()
        except IndexError:
            return _Request(self._compiled)

    def _failure(self, error: RuntimeError) -> RuntimesError:
        where = f"engine {self._engine.path}"
        if self._engine.device != "CPU" and not _is_here(self._engine.device):
            return DeviceGone(f"{where}: its {self._engine.device} is gone: {_last(error)}")
        return RuntimesError(f"{where}: OpenVINO cannot run this feed: {_last(error)}")

    def layers(self, feed: Feed | None = None) -> list[Layer]:
        feed = zero_feed(self._engine) if feed is None else feed
        compiled = _compile(self._engine, read_files(self._engine), {**self._settings, "PERF_COUNT": "YES"})
        request = compiled.create_infer_request()
        arrays = {position: feed[name] for name, position in self._inputs.items()}
        request.infer(arrays)   # compiles the kernels for these shapes
        first = _times(compiled.get_runtime_model())    # a fresh copy, with the counters as they are now
        for _ in range(PROFILED_RUNS):
            request.infer(arrays)
        model = compiled.get_runtime_model()
        times_us = {name: _steady(first[name], mean) for name, mean in _times(model).items()}
        return _layers(model, times_us, _products(_read(self._engine, read_files(self._engine)), feed))

    def versions(self) -> dict[str, str]:
        import openvino

        return {"openvino": str(openvino.__version__)}

    def close(self) -> None:
        for _ in range(self._most):     # a late run may still be under way
            self._free.acquire()
        self._requests.clear()
        del self._compiled


class _Request:
    """An infer request, which writes its results where nobody else looks: they are the caller's own, and not copied.

    A tensor whose array the caller has let go is written again. A decoder so takes turns with two: one run's cache is
    read while the next one's is written, and no memory is asked of the system for a step.
    """

    def __init__(self, compiled: Any) -> None:
        import openvino

        self.own = compiled.create_infer_request()
        self._kinds = [(port.element_type, port.shape if port.partial_shape.is_static else [0])
                       for port in compiled.outputs]    # one of dynamic sizes grows to fit
        self._kept: list[list[Any]] = [[] for _ in self._kinds]
        self._given: Mapping[int, np.ndarray] = {}
        self._tensor = openvino.Tensor
        self._idle = self._references([openvino.Tensor(openvino.Type.u8, [0])])[0]

    def results(self) -> list[Any]:
        """Tensors that the next run writes, by the position of the output."""
        results = []
        for position, (kind, shape) in enumerate(self._kinds):
            kept = self._kept[position]
            free = next((at for at, count in enumerate(self._references(kept)) if count == self._idle), None)
            if free is None:
                free = 0
                kept.insert(0, self._tensor(kind, shape))
                del kept[KEPT:]
            results.append(kept[free])
            self.own.set_output_tensor(position, kept[free])
        return results

    def changed(self, arrays: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Those of a feed that are not where the run before read them: a decoder's steps share most of theirs.

        OpenVINO copies an array that it may not share; such a one is given each time.
        """
        shared = {at for at, array in arrays.items() if array.flags.c_contiguous and array.flags.writeable}
        changed = {at: array for at, array in arrays.items() if at not in shared or self._given.get(at) is not array}
        self._given = arrays        # OpenVINO does not keep them
        return changed

    def forget(self) -> None:
        """After a failure it is not known which arrays were set."""
        self._given = {}

    @staticmethod
    def _references(tensors: list[Any]) -> list[int]:
        """How many hold each, an array of it among them; counted alike wherever it is called."""
        return [sys.getrefcount(tensor) for tensor in tensors]


def _compile(engine: Engine, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> Any:
    import openvino

    core = openvino.Core()
    if not _is_here(engine.device):
        raise DeviceGone(
            f"engine {engine.path}: OpenVINO cannot open it on {engine.device}: this machine has "
            f"{core.available_devices}; install the driver of the {engine.device}, or take the engine of another target"
        )
    try:
        return core.compile_model(_read(engine, files), engine.device, dict(settings))
    except RuntimeError as error:
        raise RuntimesError(
            f"engine {engine.path}: OpenVINO cannot open it on {engine.device}: {_last(error)}"
        ) from error


def _is_here(device: str) -> bool:
    """Whether OpenVINO finds such a device now: "GPU" is also "GPU.0"."""
    import openvino

    return any(found.partition(".")[0] == device for found in openvino.Core().available_devices)


def _read(engine: Engine, files: Mapping[str, bytes]) -> Any:
    import openvino

    xml, weights = files[engine.entry], str(PurePosixPath(engine.entry).with_suffix(".bin"))
    if not engine.entry.endswith(".xml") or not xml.lstrip().startswith(b"<") or weights not in files:
        raise RuntimesError(f"{engine.path / engine.entry} is not an OpenVINO IR (.xml and .bin): export it again")
    # The tensor copies the bytes, so that the model and not this function decides how long they live.
    return openvino.Core().read_model(model=xml, weights=openvino.Tensor(np.frombuffer(files[weights], np.uint8)))


def _settings(engine: Engine, threads: int | None) -> dict[str, Any]:
    refused = sorted(set(engine.options) - OPTIONS)
    if refused:
        raise RuntimesError(
            f"engine {engine.path} sets the OpenVINO option {refused[0]!r}, which an engine may not set: "
            f"export it again with some of {sorted(OPTIONS)}"
        )
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:     # given some of the cores, every engine pins its threads to the same: towers would wait
        settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return {**settings, **engine.options}


def _positions(engine: Engine, kind: str, names: list[str], ports: list[Any]) -> dict[str, int]:
    known = {name: position for position, port in enumerate(ports) for name in port.names}
    if not set(names) <= known.keys() or (kind == "input" and len(names) != len(ports)):
        raise RuntimesError(
            f"engine {engine.path}: its record names the {kind}s {names}, the model has {list(known)}: export it again"
        )
    return {name: known[name] for name in names}


def _times(model: Any) -> dict[str, int]:
    """The mean time of each layer over its runs so far, in whole microseconds.

    OpenVINO says "not_executed" of a mean below one as well: that is 0 here.
    """
    times = {node.get_friendly_name(): _info(node).get("execTimeMcs", "") for node in model.get_ordered_ops()}
    return {name: int(time) if time.isdigit() else 0 for name, time in times.items()}


def _steady(first: int, mean: int) -> float:
    """The mean without the first run, from the first and the mean with it."""
    return max(0.0, (mean * (PROFILED_RUNS + 1) - first) / PROFILED_RUNS)


def _layers(model: Any, times_us: Mapping[str, float], products: Mapping[str, int]) -> list[Layer]:
    """The layers in order, without inputs, outputs, and those that prepare constants once."""
    constant: set[str] = set()
    layers = []
    for node in model.get_ordered_ops():
        name, info = node.get_friendly_name(), _info(node)
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if info.get("layerType") == "Const" or (sources and sources <= constant):
            constant.add(name)
        elif info.get("layerType") not in ("Input", "Output"):
            layers.append(_layer(node, info, times_us[name], products))
    return layers


def _layer(node: Any, info: Mapping[str, str], time_us: float, products: Mapping[str, int]) -> Layer:
    kind, precision, fused = info["layerType"], info["runtimePrecision"].lower(), _fused(info)
    count = None
    if is_arithmetic(kind):
        count = macs(kind, [_shape(value) for value in node.input_values()], _shape(node.output(0)))
    elif kind == "Subgraph" and any(name in products for name in fused):
        kind = "Subgraph of MatMul"     # several operators in one kernel: attention
    counted = is_arithmetic(kind)
    if counted and count is None:
        count = sum(products.get(name, 0) for name in fused) or None
    return Layer(
        name=node.get_friendly_name(),
        type=kind,
        precision=PRECISIONS.get(precision, precision),
        time_us=time_us,
        nodes=_nodes(node),
        macs=count,
        seen=_seen(node, info) if counted else None,
    )


def _products(model: Any, feed: Feed) -> dict[str, int]:
    """The multiply-accumulates of each product of matrices and each convolution of the IR, by name."""
    model.reshape({name: list(array.shape) for name, array in feed.items()})
    found = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if is_arithmetic(kind):
            turned = kind == "MatMul" and bool(node.get_attributes().get("transpose_a"))
            shapes = [_shape(value) for value in node.input_values()]
            found[node.get_friendly_name()] = macs(kind, shapes, _shape(node.output(0)), transposed=turned)
    return {name: count for name, count in found.items() if count is not None}


def _fused(info: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in info.get("originalLayersNames", "").split(",") if name)


def _nodes(node: Any, depth: int = 4) -> tuple[str, ...]:
    """The operators of a layer; where none tells its component (the plugin added it), those it is there for."""
    names = _fused(_info(node))
    if not depth or any(COMPONENT_MARK in name for name in names):
        return names
    readers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
    for near in (readers, [value.get_node() for value in node.input_values()]):
        found = tuple(dict.fromkeys(name for other in near for name in _nodes(other, depth - 1)))
        if any(COMPONENT_MARK in name for name in found):
            return found
    return names


def _seen(node: Any, info: Mapping[str, str]) -> str:
    """The kernel, and the types of its operands: all that OpenVINO tells, which is no reason."""
    kinds = []
    for value in node.input_values()[:2]:
        given = _info(value.get_node()).get("outputPrecisions", "").lower().split(",")
        kinds.append(given[value.get_index()] if value.get_index() < len(given) else given[0])
    shown = " and ".join(kind for kind in kinds if kind)
    return f"kernel {info.get('primitiveType', 'not named')}" + (f", operands {shown}" if shown else "")


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = value.get_partial_shape()
    return tuple(shape.to_shape()) if shape.is_static else None


def _info(node: Any) -> dict[str, str]:
    return {key: str(getattr(value, "value", value)) for key, value in node.get_rt_info().items()}


def _last(error: Exception) -> str:
    """The sentence that matters of OpenVINO's chain of "Exception from file:line" lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([line for line in lines if not line.startswith("Exception from")] or lines)[:500]
