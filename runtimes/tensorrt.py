"""Run a TensorRT or TensorRT-for-RTX engine on an NVIDIA GPU; the two packages share one Python API.

Written, never run: no machine this was developed on had an NVIDIA GPU. Its calls are exercised against a fake only.
API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/ and NVIDIA's cuda-python.

A plan is code for the GPU: its digest is checked before it is deserialised, and no plug-in library is loaded.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtimes.backends import Layer, Runner, install_command, zero_feed
from runtimes.engine import Engine
from runtimes.errors import DeviceGone, RuntimesError
from runtimes.spec import Feed

PROFILED_RUNS = 20

# A word of the engine inspector's "Format/Datatype" -> our name of the precision.
PRECISIONS = {"int8": "int8", "fp8": "f8", "half": "f16", "fp16": "f16", "bf16": "bf16", "bfloat16": "bf16",
              "float": "f32", "fp32": "f32", "int32": "i32", "int64": "i64", "bool": "bool"}


def open_runner(engine: Engine, files: Mapping[str, bytes], threads: int | None) -> Runner:
    """``threads`` means nothing on a GPU and is not used."""
    return TensorRTRunner(engine, files[engine.entry])


class TensorRTRunner:
    """One execution context, one stream, and a device buffer per tensor; concurrent calls of :meth:`run` take turns."""

    def __init__(self, engine: Engine, plan: bytes) -> None:
        if engine.options:
            raise RuntimesError(f"engine {engine.path} sets {sorted(engine.options)}: TensorRT takes no options")
        self._engine = engine
        self._trt = importlib.import_module(engine.backend)     # the backend is called what its package is
        self._cuda = Cuda(f"engine {engine.path}", engine.backend)
        self._check_fingerprint()
        messages: list[str] = []
        self._logger = _logger(self._trt, messages)             # TensorRT keeps a pointer to it
        self._runtime = self._trt.Runtime(self._logger)
        self._plan = self._runtime.deserialize_cuda_engine(plan)
        if self._plan is None:
            reason, built = "; ".join(messages) or "no reason given", dict(engine.built_with)
            raise RuntimesError(
                f"engine {engine.path}: TensorRT {self._trt.__version__} cannot open it ({reason}): "
                f"it runs on the kind of GPU and the version it was built for ({built}): build it here"
            )
        self._check_names()
        self._context = self._plan.create_execution_context()
        if self._context is None:
            raise RuntimesError(f"engine {engine.path}: not enough GPU memory to run it: close what else uses the GPU")
        self._stream = self._cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}          # tensor -> address, size in bytes
        self._lock = threading.Lock()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        with self._lock:
            return self._run(self._context, feed)

    def layers(self, feed: Feed | None = None) -> list[Layer]:
        """From the engine inspector and, for the times, TensorRT's profiler in a second context.

        An engine built without detailed profiling names its layers and no more.
        """
        inspector = self._plan.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        times = self._time_layers(zero_feed(self._engine) if feed is None else feed)
        return [_layer(record, times) for record in json.loads(text)["Layers"]]

    def _time_layers(self, feed: Feed) -> dict[str, float]:
        """Mean microseconds of each layer over ``PROFILED_RUNS``, the first run left out."""
        profiler = _profiler(self._trt)
        context = self._plan.create_execution_context()
        context.profiler = profiler
        with self._lock:
            for _ in range(1 + PROFILED_RUNS):
                self._run(context, feed)
        return {name: float(np.mean(times[1:])) for name, times in profiler.times_us.items()}

    def _run(self, context: Any, feed: Feed) -> dict[str, np.ndarray]:
        for spec in self._engine.inputs:
            array = feed[spec.name]
            if not context.set_input_shape(spec.name, array.shape):
                raise RuntimesError(
                    f"engine {self._engine.path}: input {spec.name!r} of shape {array.shape} is outside the shapes "
                    "it was built for: build it again with a wider range"
                )
            self._cuda.copy_in(self._bind(context, spec.name, array.nbytes), array, self._stream)
        outputs = {spec.name: self._output(context, spec.name) for spec in self._engine.outputs}
        if not context.execute_async_v3(self._stream):
            raise RuntimesError(f"engine {self._engine.path}: TensorRT could not run this feed")
        for name, array in outputs.items():
            self._cuda.copy_out(array, self._buffers[name][0], self._stream)
        self._cuda.wait(self._stream)
        return outputs

    def versions(self) -> dict[str, str]:
        return {self._engine.backend: str(self._trt.__version__), "cuda": self._cuda.version()}

    def close(self) -> None:
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._cuda.end(self._stream)
        del self._context, self._plan, self._runtime    # in this order: each refers to the next

    def _check_fingerprint(self) -> None:
        """Refuse an engine of another GPU or another release before TensorRT sees a byte of it."""
        here = {self._engine.backend: str(self._trt.__version__), **self._cuda.gpu()}
        for name, built in self._engine.built_with.items():
            if name in here and not _same_release(built, here[name]):
                raise RuntimesError(
                    f"engine {self._engine.path} was built for {name} {built}, this device has {here[name]}: "
                    "build it here, or load the bundle made for this device"
                )

    def _check_names(self) -> None:
        engine, mode = self._engine, self._trt.TensorIOMode
        found = [self._plan.get_tensor_name(index) for index in range(self._plan.num_io_tensors)]
        for kind, specs in ((mode.INPUT, engine.inputs), (mode.OUTPUT, engine.outputs)):
            names = {name for name in found if self._plan.get_tensor_mode(name) == kind}
            if names != {spec.name for spec in specs}:
                raise RuntimesError(
                    f"engine {engine.path}: its record names {[spec.name for spec in specs]}, the plan has "
                    f"{sorted(names)}: build it again"
                )

    def _output(self, context: Any, name: str) -> np.ndarray:
        shape = tuple(context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise RuntimesError(
                f"engine {self._engine.path}: the shape of output {name!r} depends on values, which is not supported"
            )
        array = np.empty(shape, self._trt.nptype(self._plan.get_tensor_dtype(name)))
        self._bind(context, name, array.nbytes)
        return array

    def _bind(self, context: Any, name: str, size: int) -> int:
        """The address of a device buffer of at least ``size`` bytes, given to the context as the tensor ``name``."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size or not address:
            if address:
                self._cuda.free(address)
                del self._buffers[name]
            address = self._cuda.allocate(max(size, 1))
            self._buffers[name] = (address, size)
        context.set_tensor_address(name, address)
        return address


class Cuda:
    """The few calls of the CUDA runtime a runner makes; a failed one is an error that names the call."""

    def __init__(self, where: str, backend: str) -> None:
        self._where = where
        try:
            self._api = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise DeviceGone(
                f"backend {backend!r} needs NVIDIA's cuda-python ({error}): {install_command(backend)}"
            ) from error
        status, *count = self._api.cudaGetDeviceCount()
        if status != self._api.cudaError_t.cudaSuccess or count[0] < 1:
            raise DeviceGone(
                f"{self._where} needs an NVIDIA GPU and CUDA sees none ({status}): "
                "run it on the device it was built for, or choose another target of the bundle"
            )

    def stream(self) -> int:
        return int(self._call("cudaStreamCreate"))

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def end(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def version(self) -> str:
        version = int(self._call("cudaRuntimeGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"

    def gpu(self) -> dict[str, str]:
        """The GPU in use, its compute capability and its multiprocessors: "Orin", "8.7", "16"."""
        device = self._call("cudaGetDevice")
        facts = self._call("cudaGetDeviceProperties", device)
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        return {"gpu": name.strip("\0 "), "sm": f"{facts.major}.{facts.minor}",
                "multiprocessors": str(facts.multiProcessorCount)}  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if status != self._api.cudaError_t.cudaSuccess:
            where = f"{self._where}: {name} failed on the GPU ({status})"
            if status == self._api.cudaError_t.cudaErrorMemoryAllocation:
                raise RuntimesError(f"{where}: free memory on it")
            raise DeviceGone(f"{where}: it is lost to this process, restart the app")
        return values[0] if values else None


def gpu_facts(backend: str) -> dict[str, str]:
    """The GPU an engine of ``backend`` would run on here: its name, compute capability (``sm``) and size.

    Raises:
        RuntimesError: if NVIDIA's cuda-python is not installed, or there is no GPU.
    """
    return Cuda(f"backend {backend!r}", backend).gpu()


def _same_release(built: str, here: str) -> bool:
    """Whether two releases, or names, are the same as far as both are given: 1.7.1 is also 1.7.1.32."""
    if not (built[:1].isdigit() and here[:1].isdigit()):
        return built == here
    pairs = zip(built.split("."), here.split("."), strict=False)
    return all(one == other for one, other in pairs)


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Logger()


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times_us: dict[str, list[float]] = {}

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            self.times_us.setdefault(name, []).append(1000 * milliseconds)

    return Profiler()


def _layer(record: Any, times: Mapping[str, float]) -> Layer:
    """A layer of the inspector's JSON: int8 if an input of it is, else what it puts out."""
    if isinstance(record, str):
        return Layer(name=record, type="unknown", precision="unknown", time_us=times.get(record))
    inputs, outputs = ([_precision(tensor) for tensor in record.get(key, [])] for key in ("Inputs", "Outputs"))
    return Layer(
        name=record["Name"],
        type=record.get("LayerType", "unknown"),
        precision="int8" if "int8" in inputs else (outputs or inputs or ["unknown"])[0],
        time_us=times.get(record["Name"]),
    )


def _precision(tensor: Mapping[str, Any]) -> str:
    words = str(tensor.get("Format/Datatype", "")).lower().replace(",", " ").split()
    return next((PRECISIONS[word] for word in words if word in PRECISIONS), "unknown")
