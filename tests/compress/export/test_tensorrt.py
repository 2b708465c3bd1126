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

import runtimes
from compress.errors import CompressError
from compress.export import tensorrt as module
from compress.export.rtx_libraries import RtxLibraries, ensure_rtx_libraries
from compress.export.tensorrt import build
from compress.targets import Target, targets
from runtimes.engine import Engine, Precision, read_engine
from tests.compress.export import tiny_models as tiny

RTX = targets()["rtx"]
NANO = targets()["jetson-orin-nano"]
WORKER = Path(runtimes.__file__).with_name("tensorrt_builder.py")


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
    return dict(json.loads((into / "build.json").read_text()))


def test_recipe_of_an_int8_engine(tmp_path: Path) -> None:
    recipe = _recipe(tiny.quantized(tmp_path / "q.onnx"), tmp_path / "engine", "int8")
    shapes = "--minShapes=x:1x16 --optShapes=x:2x16 --maxShapes=x:8x16"
    common = "trtexec --onnx=model.onnx --saveEngine=model.engine --skipInference"
    assert recipe == {
        "format": "compress.build",
        "version": 2,
        "onnx": "model.onnx",
        "precision": "int8",
        "expected": {"tensorrt": "10.3", "jetpack": "6.2"},
        "workspace_mib": 2048,  # a quarter of 8 GiB
        "profile": {"x": {"min": [1, 16], "opt": [2, 16], "max": [8, 16]}},
        "typing": "strong",
        "releases": ">=10.0",
        "flags": [],
        "trtexec": f"{common} --stronglyTyped --memPoolSize=workspace:2048M {shapes}",
    }


def _sparse(path: Path) -> Path:
    """The file with half of every four inputs of its weight zero."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if array.ndim == 2:
            array[::4], array[1::4] = 0, 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    return path


def test_weights_in_the_2_4_pattern_set_the_builders_flag(tmp_path: Path) -> None:
    for number, (make, precision) in enumerate(((tiny.floating, "fp16"), (tiny.quantized, "int8"))):
        recipe = _recipe(_sparse(make(tmp_path / f"{number}.onnx")), tmp_path / str(number), precision)  # type: ignore[arg-type]
        assert recipe["flags"] == ["SPARSE_WEIGHTS"]
        assert "--stronglyTyped --sparsity=enable" in recipe["trtexec"]
        assert read_engine(tmp_path / str(number)).notes[-1].startswith("1 of 1 weights are 2:4 sparse")
    older = dataclasses.replace(NANO, tensorrt="8.6", opset=17)
    weak = _recipe(_sparse(tiny.floating(tmp_path / "17.onnx", opset=17)), tmp_path / "e16", "fp16", older)
    assert weak["flags"] == ["FP16", "SPARSE_WEIGHTS"]
    assert "--fp16 --sparsity=enable" in weak["trtexec"]


@pytest.mark.usefixtures("_rtx")
def test_an_engine_of_sparse_weights_is_built_with_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    run = module.run_builder
    monkeypatch.setattr(module, "run_builder", lambda data, job, *rest: (jobs.append(job), run(data, job, *rest))[1])
    engine = _build(_sparse(tiny.quantized(tmp_path / "q.onnx")), tmp_path / "sparse", "int8")
    _build(tiny.quantized(tmp_path / "q.onnx"), tmp_path / "dense", "int8")
    assert [job["flags"] for job in jobs] == [["SPARSE_WEIGHTS"], []]
    assert "1 of 1 weights are 2:4 sparse" in engine.notes[1]


def test_a_strongly_typed_file_is_written_in_the_types_of_its_engine(tmp_path: Path) -> None:
    floating, quantized = tiny.floating(tmp_path / "f.onnx"), tiny.quantized(tmp_path / "q.onnx")
    assert (_recipe(floating, tmp_path / "fp32", "fp32")["typing"], _types(tmp_path / "fp32")) == ("strong", {"FLOAT"})
    assert (tmp_path / "fp32" / "model.onnx").read_bytes() == floating.read_bytes()
    _recipe(floating, tmp_path / "fp16", "fp16")
    assert _types(tmp_path / "fp16") == {"FLOAT16"}
    _recipe(quantized, tmp_path / "int8", "int8")
    assert _types(tmp_path / "int8") == {"INT8", "FLOAT16"}


def test_tensorrt_8_gets_the_float32_file_and_flags(tmp_path: Path) -> None:
    older = dataclasses.replace(NANO, tensorrt="8.6", opset=17)
    path = tiny.floating(tmp_path / "17.onnx", opset=17)
    half = _recipe(path, tmp_path / "e16", "fp16", older)
    assert (half["typing"], half["flags"], half["releases"]) == ("weak", ["FP16"], ">=8.6,<11")
    assert "--fp16" in half["trtexec"]
    assert (tmp_path / "e16" / "model.onnx").read_bytes() == path.read_bytes()
    assert _recipe(path, tmp_path / "e32", "fp32", older)["flags"] == []
    with pytest.raises(CompressError, match=r"20.onnx has opset 20, which TensorRT 8.6 .* does not know: .*opset = 17"):
        _recipe(tiny.floating(tmp_path / "20.onnx"), tmp_path / "e20", "fp32", older)
    with pytest.raises(CompressError, match=r"21.onnx has opset 21, .* does not know: quantize it without int4 w"):
        _recipe(tiny.floating(tmp_path / "21.onnx", opset=21), tmp_path / "e21", "fp32", older)
    assert _recipe(tiny.floating(tmp_path / "21.onnx", opset=21), tmp_path / "e", "fp32")["releases"] == ">=10.0"


def test_an_opset_that_no_tensorrt_is_known_to_take(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"22.onnx has opset 22, .* 'jetson-orin-nano' .* export it with opset 21"):
        _recipe(tiny.floating(tmp_path / "22.onnx", opset=22), tmp_path / "e22", "fp32")


def _types(folder: Path) -> set[str]:
    """The types of the constants of an engine folder's ONNX file."""
    graph = onnx.load(folder / "model.onnx").graph
    return {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}


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
    assert recipe["trtexec"].endswith("--skipInference --stronglyTyped")
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


@pytest.mark.usefixtures("_rtx")
def test_half_precision_is_built_from_a_file_in_half_precision(tmp_path: Path) -> None:
    engine = _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "fp16", "fp16")
    assert (engine.precision, engine.outputs[0].dtype) == ("fp16", "float32")
    assert "2 CAST" in engine.notes[1]  # the input's and the output's
    assert "HALF" in engine.notes[2]
    rest = dataclasses.replace(RTX, float="fp16")
    assert "HALF" in _build(tiny.quantized(tmp_path / "q.onnx"), tmp_path / "int8", "int8", rest).notes[2]


def _worker(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "worker.py").write_text(code)
    monkeypatch.setattr("runtimes.built._BUILDER", folder / "worker.py")
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
