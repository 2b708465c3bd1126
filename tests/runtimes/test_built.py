"""Engines built on the device: against a fake TensorRT of three releases, since no GPU was at hand."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtimes.backends import open_engine
from runtimes.built import built_engine, cache_folder, cached_engine, fingerprint, main
from runtimes.engine import Engine, write_engine
from runtimes.errors import RuntimesError
from runtimes.records import write_json
from tests.contracts.models import BY_NAME

CASE = BY_NAME["matmul"]

# What it is asked to do becomes the plan, so that a test reads it there; a folder "refuse" makes the parser refuse.
FAKE = textwrap.dedent(
    '''
    import json, pathlib
    __version__ = pathlib.Path(__file__).with_name("version").read_text()
    MAJOR = int(__version__.split(".")[0])
    float32, int64 = "float32", "int64"

    class Enum:
        def __init__(self, name): self.name = name
        def __eq__(self, other): return self.name == other.name
        def __hash__(self): return hash(self.name)
    class ILogger: pass
    class LayerType:
        NORMALIZATION, SOFTMAX, REDUCE, SHAPE = (Enum(n) for n in ("NORMALIZATION", "SOFTMAX", "REDUCE", "SHAPE"))
        MATRIX_MULTIPLY = Enum("MATRIX_MULTIPLY")
    class NetworkDefinitionCreationFlag: pass
    if MAJOR < 11: NetworkDefinitionCreationFlag.EXPLICIT_BATCH = 0
    if MAJOR >= 10: NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    class BuilderFlag: pass
    if MAJOR < 11: BuilderFlag.FP16, BuilderFlag.INT8, BuilderFlag.OBEY_PRECISION_CONSTRAINTS = "FP16", "INT8", "OBEY"
    class MemoryPoolType: WORKSPACE = "workspace"
    class ProfilingVerbosity: DETAILED = "detailed"
    class LayerInformationFormat: JSON = "json"

    class Layer:
        num_outputs = 1
        def __init__(self, type, dtype): self.type, self.dtype, self.held = type, dtype, None
        def get_output(self, index):
            class Tensor: dtype = self.dtype if isinstance(self.dtype, Enum) else Text(self.dtype)
            return Tensor
        def set_output_type(self, index, dtype): self.held = dtype
    class Text(str):
        @property
        def name(self): return self.upper()
    class Network:
        num_inputs = 1
        def __init__(self, flags):
            self.flags = flags
            self.layers = [Layer(t, d) for t, d in ((LayerType.MATRIX_MULTIPLY, float32), (LayerType.SOFTMAX, float32),
                                                    (LayerType.REDUCE, int64), (LayerType.NORMALIZATION, float32))]
        @property
        def num_layers(self): return len(self.layers)
        def get_layer(self, index): return self.layers[index]
        def get_input(self, index):
            class Input: name, shape = "x", (-1, 2)
            return Input
    class Cache:
        def __init__(self, data): self.data = data
        def serialize(self): return self.data + b"+"
    class Config:
        def __init__(self): self.said, self.flags, self.cache, self.profiling_verbosity = {}, [], None, None
        def set_memory_pool_limit(self, pool, size): self.said["workspace"] = size
        def set_flag(self, flag): self.flags.append(flag)
        def add_optimization_profile(self, profile): self.said["profile"] = profile.shapes
        def create_timing_cache(self, data): return Cache(data)
        def set_timing_cache(self, cache, ignore_mismatch): self.cache = cache
        def get_timing_cache(self): return self.cache or Cache(b"timings")
    class Profile:
        def __init__(self): self.shapes = {}
        def set_shape(self, name, *shapes): self.shapes[name] = shapes
    class Builder:
        def __init__(self, logger): self.logger = logger
        def create_network(self, flags=0): return Network(flags)
        def create_builder_config(self): return Config()
        def create_optimization_profile(self): return Profile()
        def build_serialized_network(self, network, config):
            held = [layer.type.name for layer in network.layers if layer.held == float32 and layer.precision == float32]
            said = {**config.said, "network": network.flags, "flags": config.flags, "held": held,
                    "verbosity": config.profiling_verbosity, "timings": config.cache and config.cache.data.decode()}
            return json.dumps(said).encode()
    class Error:
        def desc(self): return "no such operator\\n[checkMacros.cpp]"
    class OnnxParser:
        def __init__(self, network, logger): pass
        def parse(self, data): return not data.endswith(b"refuse")
        def get_error(self, index): return Error()
    class Runtime:
        def __init__(self, logger): pass
        def deserialize_cuda_engine(self, plan):
            class Plan:
                def create_engine_inspector(self): return self
                def get_engine_information(self, format): return \'{"Layers": []}\'
            return Plan()
    '''
)


class Device:
    """A board with a fake TensorRT of some release; ``install`` changes the release."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._package, self._patch = folder / "packages" / "tensorrt", monkeypatch
        self._package.mkdir(parents=True)
        (self._package / "__init__.py").write_text(FAKE)
        self.cache = folder / "cache"
        self.gpu = SimpleNamespace(name=b"Orin", major=8, minor=7, multiProcessorCount=8)
        cuda = ModuleType("cuda.bindings.runtime")
        vars(cuda).update(
            cudaError_t=SimpleNamespace(cudaSuccess=0), cudaGetDeviceCount=lambda: (0, 1),
            cudaGetDevice=lambda: (0, 0), cudaGetDeviceProperties=lambda _: (0, self.gpu))  # fmt: skip
        for name, module in {"cuda": ModuleType("cuda"), "cuda.bindings": ModuleType("cuda.bindings"),
                             "cuda.bindings.runtime": cuda}.items():  # fmt: skip
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.syspath_prepend(str(self._package.parent))

    def install(self, version: str) -> None:
        (self._package / "version").write_text(version)
        self._patch.delitem(sys.modules, "tensorrt", raising=False)

    def asked(self, engine: Engine) -> Any:
        return json.loads((engine.path / "model.engine").read_bytes())


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Engine]:
    def make(onnx: bytes = b"\x12\x04onnx", **changes: Any) -> Engine:
        folder = tmp_path / "recipe"
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(onnx)
        record = {
            "format": "compress.build", "version": 2, "onnx": "model.onnx", "typing": "strong", "flags": [],
            "workspace_mib": 2048, "profile": {"x": {"min": [1, 2], "opt": [2, 2], "max": [8, 2]}}, **changes,
        }  # fmt: skip
        write_json(folder / "build.json", {key: value for key, value in record.items() if value != "absent"})
        return write_engine(
            folder, backend="tensorrt", device="GPU", precision="int8", entry="model.onnx", inputs=CASE.inputs,
            outputs=CASE.outputs, options={}, source="s", built_with={}, state="build on the device")  # fmt: skip

    return make


def test_it_is_built_once_and_kept_by_what_it_depends_on(device: Device, recipe: Callable[..., Engine]) -> None:
    device.install("10.3.0")
    engine = recipe()
    assert cached_engine(engine, device.cache) is None
    made = built_engine(engine, device.cache)
    assert (made.state, made.entry, made.source) == ("runnable", "model.engine", "s")
    assert made.built_with == {"tensorrt": "10.3.0", "gpu": "Orin", "sm": "8.7", "multiprocessors": "8"}
    assert sorted(file.name for file in made.path.iterdir()) == [
        "build.log", "engine.json", "layers.json", "model.engine"]  # fmt: skip
    assert device.asked(made) == {
        "workspace": 2048 << 20, "profile": {"x": [[1, 2], [2, 2], [8, 2]]}, "network": 1 << 1, "flags": [],
        "held": [], "verbosity": "detailed", "timings": None,
    }  # fmt: skip
    before = (made.path / "model.engine").stat().st_mtime_ns
    assert built_engine(engine, device.cache) == cached_engine(engine, device.cache) == made
    assert (made.path / "model.engine").stat().st_mtime_ns == before
    device.install("10.4.0")
    assert cached_engine(engine, device.cache) is None
    assert built_engine(engine, device.cache).built_with["tensorrt"] == "10.4.0"
    device.gpu.multiProcessorCount = 16
    assert cached_engine(engine, device.cache) is None
    assert built_engine(made, device.cache) is made  # nothing to build


def test_timings_of_earlier_builds_on_this_gpu_are_used(device: Device, recipe: Callable[..., Engine]) -> None:
    device.install("10.3.0")
    built_engine(recipe(), device.cache)
    assert device.asked(built_engine(recipe(b"\x12\x07another"), device.cache))["timings"] == "timings+"
    device.install("10.4.0")
    assert device.asked(built_engine(recipe(), device.cache))["timings"] is None


def test_tensorrt_8_is_told_the_precisions_and_holds_norms_in_float32(
    device: Device, recipe: Callable[..., Engine]
) -> None:
    device.install("8.6.1")
    asked = device.asked(built_engine(recipe(typing="weak", flags=["INT8", "FP16"]), device.cache))
    assert (asked["network"], asked["flags"]) == (1, ["INT8", "FP16", "OBEY"])
    assert asked["held"] == ["SOFTMAX", "NORMALIZATION"]  # the reduction counts in int64
    asked = device.asked(built_engine(recipe(typing="weak", workspace_mib=None), device.cache))
    assert (asked["flags"], asked["held"], "workspace" in asked) == ([], [], False)
    device.install("10.3.0")
    assert device.asked(built_engine(recipe(typing="weak"), device.cache))["network"] == 0


@pytest.mark.parametrize(
    ("version", "typing", "message"),
    [("11.0.0", "weak", "tensorrt 11.0.0 builds strongly typed networks only, and this file was exported for an"),
     ("8.6.1", "strong", "tensorrt 8.6.1 knows no strongly typed networks, and this file was exported for")],
)  # fmt: skip
def test_a_file_for_the_other_typing_is_refused(
    device: Device, recipe: Callable[..., Engine], version: str, typing: str, message: str
) -> None:
    device.install(version)
    with pytest.raises(RuntimesError, match=message):
        built_engine(recipe(typing=typing), device.cache)
    assert [path.name for path in device.cache.iterdir()] == []  # nothing half built is left


def test_what_tensorrt_refuses_is_said_in_its_words(device: Device, recipe: Callable[..., Engine]) -> None:
    device.install("10.3.0")
    with pytest.raises(RuntimesError, match=r"TensorRT refuses .*recipe: no such operator$"):
        built_engine(recipe(b"\x12\x06refuse"), device.cache)
    with pytest.raises(RuntimesError, match="has no builder flag SPARSE"):
        built_engine(recipe(flags=["SPARSE"]), device.cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "has format version 1 and this software reads version 2"),
        ({"typing": "loose"}, "'typing' is 'loose', expected one of"),
        ({"flags": [1]}, "an item of 'flags' must be a string"),
        ({"workspace_mib": "all"}, "'workspace_mib' must be an integer"),
        ({"profile": {"x": {"min": [1]}}}, "profile of 'x' lacks 'opt'"),
        ({"profile": {"x": {"min": ["1"], "opt": [1], "max": [1]}}}, "profile of 'x' must be an integer"),
        ({"profile": "absent"}, "lacks 'profile'"),
    ],
)
def test_a_damaged_recipe_is_refused(
    device: Device, recipe: Callable[..., Engine], changes: dict[str, Any], message: str
) -> None:
    device.install("10.3.0")
    with pytest.raises(RuntimesError, match=message):
        built_engine(recipe(**changes), device.cache)


def test_a_recipe_changed_since_it_was_read_is_refused(device: Device, recipe: Callable[..., Engine]) -> None:
    device.install("10.3.0")
    engine = recipe()
    (engine.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(RuntimesError, match="was changed since it was read"):
        built_engine(engine, device.cache)
    engine = recipe()
    (engine.path / "build.json").unlink()
    lacking = dataclasses.replace(engine, digest="")
    with pytest.raises(RuntimesError, match=r"build.json is missing|was changed since"):
        built_engine(lacking, device.cache)


def test_a_damaged_engine_in_the_cache_is_built_again(device: Device, recipe: Callable[..., Engine]) -> None:
    device.install("10.3.0")
    engine = recipe()
    made = built_engine(engine, device.cache)
    (made.path / "model.engine").write_bytes(b"damaged")
    assert cached_engine(engine, device.cache) is None
    assert device.asked(built_engine(engine, device.cache))["network"] == 1 << 1


def test_it_cannot_be_opened_before_it_is_built(recipe: Callable[..., Engine]) -> None:
    with pytest.raises(RuntimesError, match="has not been built"):
        open_engine(recipe())


def test_the_fingerprint_names_jetpacks_release(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtimes import built

    device.install("10.3.0")
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    read = built._l4t
    monkeypatch.setattr(built, "_l4t", lambda: read(release))
    assert fingerprint("tensorrt")["l4t"] == "36.4.3"


def test_where_engines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "engines"
    monkeypatch.delenv("COMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "compress" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "compress" / "engines"


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["only one"]) == 2
    assert "usage: python -m runtimes.built BUNDLE TARGET" in capsys.readouterr().err
    assert main([str(tmp_path), "jetson-orin-nano"]) == 2
    assert "is not a bundle" in capsys.readouterr().err
