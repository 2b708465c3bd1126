"""The TensorRT runner against a fake of the two packages it calls: no GPU has run it, so this shows only that the
calls are made in order and that every failure is a clear error. The fake's device memory is the host's."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtimes.backends import open_engine
from runtimes.engine import Engine, write_engine
from runtimes.errors import DeviceGone, FeedError, RuntimesError
from runtimes.session import Session
from tests.contracts.models import BY_NAME

CASE = BY_NAME["matmul"]
WEIGHTS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


class FakeCuda(ModuleType):
    cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorMemoryAllocation=2)  # noqa: N815 (NVIDIA's names)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, Any] = {}
        self.streams = 0
        self.devices = 1
        self.fail = ""

    def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
        return (0, self.devices) if self.devices else (100, 0)

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 12060

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return 0, SimpleNamespace(name=b"Orin\0", major=8, minor=7, multiProcessorCount=8)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        if self.fail == "cudaMalloc":
            return 2, 0
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        assert (to if kind == 1 else source) in self.memory
        assert size <= len(self.memory[to if kind == 1 else source])
        ctypes.memmove(to, source, size)
        return (0,)


class FakeContext:
    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.address: dict[str, int] = {}
        self.profiler: Any = None
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "x" and shape[0] <= 3

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        if self.profiler is not None:  # the first run is slower: it must not count
            self.profiler.report_layer_time("product", 0.5 if self.runs == 1 else 0.002)
        size = self.shape[0] * 2
        x = np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.address["x"])).reshape(self.shape)
        y = np.ascontiguousarray(x @ WEIGHTS)
        ctypes.memmove(self.address["y"], y.ctypes.data, y.nbytes)
        return True


LAYERS = [
    {"Name": "product", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major Int8 format"}],
     "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    {"Name": "copy", "LayerType": "Reformat", "Inputs": [], "Outputs": [{"Format/Datatype": "Half"}]},
    "named only",
]


class FakePlan:
    num_io_tensors = 2

    def __init__(self, outputs: str = "y") -> None:
        self.names = ["x", outputs]

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def create_execution_context(self) -> FakeContext:
        return FakeContext()

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": LAYERS}))


class FakeRuntime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> FakePlan | None:
        if plan == b"other":
            return FakePlan("z")
        if plan != b"plan":
            self.logger.log("error", "built for another version")
            return None
        return FakePlan()


class FakeProfiler:
    pass


class FakeLogger:
    Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    trt = ModuleType("tensorrt_rtx")
    vars(trt).update(
        __version__="1.7", ILogger=FakeLogger, IProfiler=FakeProfiler, Runtime=FakeRuntime, nptype=lambda _: np.float32,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"), LayerInformationFormat=SimpleNamespace(JSON="json"))
    fake = FakeCuda()
    for name, module in {"tensorrt_rtx": trt, "cuda": ModuleType("cuda"), "cuda.bindings": ModuleType("cuda.bindings"),
                         "cuda.bindings.runtime": fake}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def make(folder: Path, plan: bytes = b"plan", **built_with: str) -> Engine:
    (folder / "model.engine").write_bytes(plan)
    return write_engine(
        folder, backend="tensorrt_rtx", device="GPU", precision="int8", entry="model.engine", inputs=CASE.inputs,
        outputs=CASE.outputs, options={}, source="", built_with={"tensorrt_rtx": "1.7.1", **built_with},
        state="built, not run")


def test_calls_are_made_in_order_and_memory_is_given_back(cuda: FakeCuda, tmp_path: Path) -> None:
    engine = make(tmp_path)
    with Session(engine, open_engine(engine), "rtx") as session:
        first = session.run({"x": np.ones((1, 2), np.float32)})["y"]
        second = session.run({"x": np.array([[1, 1], [2, -1], [0, 0]], np.float32)})["y"]      # larger buffers
        session.run({"x": np.zeros((1, 2), np.float32)})
        np.testing.assert_array_equal(first, [[5, 7, 9]])
        np.testing.assert_array_equal(second, [[5, 7, 9], [-2, -1, 0], [0, 0, 0]])
        assert len(cuda.memory) == 2
        with pytest.raises(RuntimesError, match=r"input 'x' of shape \(4, 2\) is outside the shapes it was built for"):
            session.run({"x": np.zeros((4, 2), np.float32)})
        with pytest.raises(FeedError, match="lacks input 'x'"):
            session.run({})
    assert (cuda.memory, cuda.streams) == ({}, 0)


def test_layers_and_versions(cuda: FakeCuda, tmp_path: Path) -> None:
    runner = open_engine(make(tmp_path))
    found = [(layer.name, layer.type, layer.precision, layer.time_us) for layer in runner.layers()]
    assert found == [("product", "gemm", "int8", pytest.approx(2.0)), ("copy", "Reformat", "f16", None),
                     ("named only", "unknown", "unknown", None)]
    assert runner.versions() == {"tensorrt_rtx": "1.7", "cuda": "12.6"}


def test_no_gpu(cuda: FakeCuda, tmp_path: Path) -> None:
    cuda.devices = 0
    with pytest.raises(DeviceGone, match="needs an NVIDIA GPU and CUDA sees none"):
        open_engine(make(tmp_path))


def test_no_cuda_python(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(DeviceGone, match=r"needs NVIDIA's cuda-python.*compress-edge\[tensorrt-rtx\]"):
        open_engine(make(tmp_path))


def test_plan_for_another_version(cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"1\.7 cannot open it \(built for another version\).*build it here"):
        open_engine(make(tmp_path, b"garbage"))


@pytest.mark.parametrize(
    ("what", "built", "here"),
    [("tensorrt_rtx", "1.6", "1.7"), ("gpu", "Xavier", "Orin"), ("sm", "8.6", "8.7"), ("sm", "8.70", "8.7"),
     ("multiprocessors", "16", "8")],
)
def test_an_engine_of_another_gpu_or_release_is_refused_before_tensorrt_sees_it(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, built: str, here: str
) -> None:
    def opened(runtime: FakeRuntime, plan: bytes) -> None:
        pytest.fail("the plan reached TensorRT")

    monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", opened)
    with pytest.raises(RuntimesError, match=rf"was built for {what} {built}, this device has {here}: build it here"):
        open_engine(make(tmp_path, **{what: built}))


def test_an_engine_of_this_gpu_and_release_is_opened(cuda: FakeCuda, tmp_path: Path) -> None:
    open_engine(make(tmp_path, gpu="Orin", sm="8.7", tensorrt_bindings="11.4.0")).close()


def test_plan_with_other_names(cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"its record names \['y'\], the plan has \['z'\]"):
        open_engine(make(tmp_path, b"other"))


def test_options_are_refused(cuda: FakeCuda, tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"sets \['profile'\]: TensorRT takes no options"):
        open_engine(dataclasses.replace(make(tmp_path), options={"profile": "1"}))


def test_out_of_memory(cuda: FakeCuda, tmp_path: Path) -> None:
    runner = open_engine(make(tmp_path))
    cuda.fail = "cudaMalloc"
    with pytest.raises(RuntimesError, match=r"cudaMalloc failed on the GPU \(2\): free memory"):
        runner.run({"x": np.ones((1, 2), np.float32)})


def test_a_gpu_that_is_lost(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = open_engine(make(tmp_path))
    monkeypatch.setattr(FakeCuda, "cudaStreamSynchronize", lambda cuda, stream: (719,))
    with pytest.raises(DeviceGone, match=r"cudaStreamSynchronize failed on the GPU \(719\): it is lost"):
        runner.run({"x": np.ones((1, 2), np.float32)})


def test_refused_where_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(RuntimesError, match=r"backend 'tensorrt_rtx' is not installed.*compress-edge\[tensorrt-rtx\]"):
        open_engine(make(tmp_path))
