"""TensorRT: recipes for a Jetson, and engines of TensorRT for RTX really built, on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import CompressError
from compress.export import tensorrt as module
from compress.export.rtx_libraries import RtxLibraries, ensure_rtx_libraries
from compress.export.tensorrt import build
from compress.targets import Target, targets
from runtimes.engine import Engine, Precision, read_engine
from tests.compress.export import tiny_models as tiny

RTX = targets()["rtx"]
NANO = targets()["jetson-orin-nano"]
WORKER = Path(module.__file__).with_name("tensorrt_worker.py")


@pytest.fixture(scope="session")
def _rtx() -> None:
    try:
        ensure_rtx_libraries()
    except CompressError as error:
        pytest.skip(str(error))


def _build(path: Path, into: Path, precision: Precision, target: Target = RTX) -> Engine:
    return build(path, target, into, inputs=tiny.INPUTS, outputs=tiny.OUTPUTS, precision=precision)


def _recipe(path: Path, into: Path, precision: Precision, target: Target = NANO) -> dict:  # type: ignore[type-arg]
    assert _build(path, into, precision, target).state == "build on the device"
    assert sorted(file.name for file in into.iterdir()) == ["build.json", "engine.json", "model.onnx"]
    assert (into / "model.onnx").read_bytes() == path.read_bytes()
    return dict(json.loads((into / "build.json").read_text()))


def test_recipe_of_an_int8_engine(tmp_path: Path) -> None:
    recipe = _recipe(tiny.quantized(tmp_path / "q.onnx"), tmp_path / "engine", "int8")
    shapes = "--minShapes=x:1x16 --optShapes=x:2x16 --maxShapes=x:8x16"
    common = "trtexec --onnx=model.onnx --saveEngine=model.engine --skipInference"
    assert recipe == {
        "format": "compress.build",
        "version": 1,
        "onnx": "model.onnx",
        "engine": "model.engine",
        "precision": "int8",
        "expected": {"tensorrt": "10.3", "jetpack": "6.2"},
        "workspace_mib": 2048,  # a quarter of 8 GiB
        "profile": {"x": {"min": [1, 16], "opt": [2, 16], "max": [8, 16]}},
        "builds": [
            {"tensorrt": ">=10.0,<11", "flags": ["INT8", "FP16"],
             "trtexec": f"{common} --int8 --fp16 --memPoolSize=workspace:2048M {shapes}"},
            {"tensorrt": ">=11", "flags": [], "trtexec": f"{common} --memPoolSize=workspace:2048M {shapes}"},
        ],
    }  # fmt: skip


def test_recipes_of_float_engines(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "f.onnx")
    full = _recipe(path, tmp_path / "fp32", "fp32")
    assert [entry["flags"] for entry in full["builds"]] == [[], []]
    half = _recipe(path, tmp_path / "fp16", "fp16")  # from 11 on it would take a float16 ONNX file
    assert [(entry["tensorrt"], entry["flags"]) for entry in half["builds"]] == [(">=10.0,<11", ["FP16"])]


def test_the_oldest_tensorrt_follows_the_opset(tmp_path: Path) -> None:
    older = _recipe(tiny.floating(tmp_path / "17.onnx", opset=17), tmp_path / "e17", "fp32")
    assert older["builds"][0]["tensorrt"] == ">=8.6,<11"
    with pytest.raises(CompressError, match=r"21.onnx has opset 21, .* 'jetson-orin-nano' .* export it with opset 20"):
        _recipe(tiny.floating(tmp_path / "21.onnx", opset=21), tmp_path / "e21", "fp32")


def test_a_static_model_has_no_shapes_and_an_unknown_memory_no_workspace(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "f.onnx")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    inputs, outputs = (
        tuple(dataclasses.replace(spec, shape=(4, spec.shape[1])) for spec in specs)
        for specs in (tiny.INPUTS, tiny.OUTPUTS)
    )
    target = dataclasses.replace(NANO, memory_gib=None)
    build(path, target, tmp_path / "engine", inputs=inputs, outputs=outputs, precision="fp32")
    recipe = json.loads((tmp_path / "engine" / "build.json").read_text())
    assert recipe["builds"][0]["trtexec"].endswith("--skipInference")
    assert recipe["workspace_mib"] is None


@pytest.mark.usefixtures("_rtx")
def test_an_int8_engine_is_built_and_its_network_counted(tmp_path: Path) -> None:
    engine = _build(tiny.quantized(tmp_path / "q.onnx"), tmp_path / "engine", "int8")
    assert sorted(file.name for file in engine.path.iterdir()) == ["build.log", "engine.json", "model.engine"]
    assert (engine.state, engine.backend, engine.entry) == ("built, not run", "tensorrt_rtx", "model.engine")
    assert "tensorrt_rtx" in engine.built_with
    assert engine.notes[0].startswith("built ahead of time, without a GPU: never run or inspected")
    assert "2 DEQUANTIZE" in engine.notes[1]
    assert "1 QUANTIZE" in engine.notes[1]
    assert "2 INT8" in engine.notes[2]  # the weight and the quantized input
    log = (engine.path / "build.log").read_text()
    assert "Detected 1 inputs and 1 output network tensors" in log
    assert str(tmp_path) not in log
    assert read_engine(engine.path) == engine


@pytest.mark.usefixtures("_rtx")
def test_builds_are_byte_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.quantized(tmp_path / "q.onnx")
    first = _build(path, tmp_path / "first", "int8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("UNRELATED", "x" * 4000)
    moved = tmp_path / "elsewhere" / "another-name.onnx"
    moved.write_bytes(path.read_bytes())
    assert _build(moved, tmp_path / "second", "int8").digest == first.digest


@pytest.mark.usefixtures("_rtx")
def test_a_float_engine_is_built(tmp_path: Path) -> None:
    engine = _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp32")
    assert "INT8" not in engine.notes[2]
    assert "QUANTIZE" not in engine.notes[1]


@pytest.mark.usefixtures("_rtx")
@pytest.mark.parametrize(("zero_point", "type"), [(3, np.int8), (128, np.uint8)])
def test_a_zero_point_is_refused_by_the_parser(tmp_path: Path, zero_point: int, type: type[np.generic]) -> None:
    path = tiny.quantized(tmp_path / "q.onnx", zero_point, type)
    message = r"TensorRT refuses .*q.onnx: node 'x_quantize' \(QuantizeLinear\): .*Non-zero zero point is not supported"
    with pytest.raises(CompressError, match=message):
        _build(path, tmp_path / "engine", "int8")
    assert not (tmp_path / "engine").exists()


@pytest.mark.usefixtures("_rtx")
def test_odd_models_are_refused_with_the_parsers_words(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "f.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(CompressError, match=r"node 'matmul' \(Unheard\): .*Plugin not found"):
        _build(path, tmp_path / "engine", "fp32")
    model.graph.node[0].op_type = "MatMul"
    model.graph.node[0].input[0] = "b"  # 8 by 16x8: the sizes do not fit
    onnx.save(model, path)
    with pytest.raises(CompressError, match=r"node 'matmul' \(MatMul\): [^\n]*must match"):
        _build(path, tmp_path / "engine", "fp32")
    assert not (tmp_path / "engine").exists()


def test_half_precision_is_not_built_for_rtx(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="'rtx': a fp16 engine is strongly typed, so the ONNX file must be fp16"):
        _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp16")


def _worker(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "worker.py").write_text(code)
    monkeypatch.setattr(module, "_WORKER", folder / "worker.py")
    monkeypatch.setattr(module, "ensure_rtx_libraries", lambda: RtxLibraries(module="none", version="0"))


def test_a_worker_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _worker(monkeypatch, tmp_path, "import os\nprint('last words', flush=True)\nos.abort()")
    with pytest.raises(CompressError, match=r"builder died of signal SIGABRT on .*f.onnx: last words"):
        _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp32")
    _worker(monkeypatch, tmp_path, "raise SystemExit(3)")
    with pytest.raises(CompressError, match=r"builder died of exit code 3 on .*f.onnx: it said nothing"):
        _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp32")
    assert not (tmp_path / "engine").exists()


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ensure_rtx_libraries", lambda: RtxLibraries(module="no_such_module", version="0"))
    with pytest.raises(CompressError, match="no_such_module cannot be imported: No module named 'no_such_module'"):
        _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp32")


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    _worker(monkeypatch, tmp_path, f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    monkeypatch.setattr(module, "BUILD_TIMEOUT_S", 3)
    with pytest.raises(CompressError, match=r"TensorRT did not finish building .*f.onnx within 3 s"):
        _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "engine", "fp32")
    assert not Path(f"/proc/{pid.read_text()}").exists()
    assert not (tmp_path / "engine").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, runpy, sys, time\n"
        f"runpy.run_path({str(WORKER)!r})['die_with'](int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    code = f"import os, subprocess, sys\nsubprocess.run([sys.executable, {str(child)!r}, str(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path(f"/proc/{parent.stdout.readline().strip()}")
        assert worker.exists()
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while worker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not worker.exists() or (worker / "status").read_text().count("Z (zombie)")


def test_a_worker_whose_parent_is_gone_already_ends(tmp_path: Path) -> None:
    code = f"import runpy\nrunpy.run_path({str(WORKER)!r})['die_with'](1 << 30)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
