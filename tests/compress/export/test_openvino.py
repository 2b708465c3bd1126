"""OpenVINO engines: the same bytes from every build, names and bounds kept, the answers right, int8 really int8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from compress.errors import CompressError
from compress.export.openvino import _options, build
from compress.targets import targets
from runtimes.engine import Engine, Precision, read_engine
from runtimes.spec import Dim, TensorSpec
from tests.compress.export import tiny_models as tiny

TARGET = targets()["openvino-cpu"]


def _build(path: Path, into: Path, precision: Precision) -> Engine:
    return build(path, TARGET, into, inputs=tiny.INPUTS, outputs=tiny.OUTPUTS, precision=precision)


def _compiled(engine: Engine) -> openvino.CompiledModel:
    options = {**engine.options, "INFERENCE_NUM_THREADS": "1"}
    return openvino.Core().compile_model(engine.path / engine.entry, engine.device, options)


@pytest.mark.parametrize("make", [tiny.quantized, tiny.branching], ids=["quantized", "branching"])
def test_every_build_writes_the_same_bytes(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path / "model.onnx")
    precision: Precision = "int8" if make is tiny.quantized else "fp32"
    digests = {_build(path, tmp_path / f"e{i}", precision).digest for i in range(2)}
    code = (
        "import sys; from pathlib import Path; from compress.export.openvino import build\n"
        "from compress.targets import targets; from tests.compress.export.tiny_models import INPUTS, OUTPUTS\n"
        "onnx, into, precision = sys.argv[1:]; target = targets()['openvino-cpu']\n"
        "print(build(Path(onnx), target, Path(into), inputs=INPUTS, outputs=OUTPUTS, precision=precision).digest)"
    )
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "e3"), precision]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    assert digests == {done.stdout.strip()}


def test_the_ir_keeps_names_and_bounds_and_nothing_of_this_machine(tmp_path: Path) -> None:
    engine = _build(tiny.quantized(tmp_path / "model.onnx"), tmp_path / "engine", "int8")
    assert sorted(file.name for file in engine.path.iterdir()) == ["engine.json", "model.bin", "model.xml"]
    assert str(tmp_path) not in (engine.path / "model.xml").read_text()
    model = openvino.Core().read_model(engine.path / "model.xml")
    assert model.input("x").partial_shape == openvino.PartialShape([openvino.Dimension(1, 8), tiny.FEATURES])
    assert model.output("y").partial_shape == openvino.PartialShape([openvino.Dimension(1, 8), tiny.CLASSES])
    assert read_engine(engine.path) == engine
    assert (engine.state, engine.entry, list(engine.built_with)) == ("runnable", "model.xml", ["openvino"])


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")])
def test_the_precision_of_the_rest_is_an_option(tmp_path: Path, precision: Precision, hint: str) -> None:
    make = tiny.quantized if precision == "int8" else tiny.floating
    engine = _build(make(tmp_path / "model.onnx"), tmp_path / "engine", precision)
    assert engine.options == {"INFERENCE_PRECISION_HINT": hint}


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")])
def test_a_step_reads_its_cache_as_it_is(precision: Precision, hint: str) -> None:
    past = TensorSpec(name="past", dtype="float32", shape=(1, Dim("past", 0, 8, 16), 4))
    options = _options(TARGET, [*tiny.INPUTS, past], precision)
    assert options == {"INFERENCE_PRECISION_HINT": hint, "SNIPPETS_MODE": "DISABLE"}
    assert "SNIPPETS_MODE" not in _options(targets()["openvino-gpu"], [past], "fp32")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_answers(tmp_path: Path, batch: int, rng: np.random.Generator) -> None:
    x = rng.uniform(-5, 5, (batch, tiny.FEATURES)).astype(np.float32)
    engine = _build(tiny.floating(tmp_path / "f.onnx"), tmp_path / "f", "fp32")
    np.testing.assert_allclose(_compiled(engine)({"x": x})["y"], tiny.floating_answer(x), atol=1e-5)
    engine = _build(tiny.quantized(tmp_path / "q.onnx", 128, np.uint8), tmp_path / "q", "int8")
    # float32 sums of exact products: only the dequantization rounds
    np.testing.assert_allclose(_compiled(engine)({"x": x})["y"], tiny.quantized_answer(x, 128, 0, 255), atol=1e-4)


@pytest.mark.parametrize(
    ("zero_point", "type", "expected"), [(128, np.uint8, "u8"), (100, np.uint8, "u8"), (0, np.int8, "i8")]
)
def test_the_matmul_runs_in_int8(tmp_path: Path, zero_point: int, type: type[np.generic], expected: str) -> None:
    engine = _build(tiny.quantized(tmp_path / "q.onnx", zero_point, type), tmp_path / "engine", "int8")
    info = [op.get_rt_info() for op in _compiled(engine).get_runtime_model().get_ordered_ops()]
    ran = [i["runtimePrecision"].astype(str) for i in info if i["layerType"].astype(str) == "FullyConnected"]
    assert ran == [expected]


def test_what_openvino_refuses_leaves_nothing(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(CompressError, match=r"OpenVINO refuses .*model.onnx: .*No conversion rule found .*Unheard"):
        _build(path, tmp_path / "engine", "fp32")
    assert not (tmp_path / "engine").exists()


def test_the_operation_behind_an_output_has_its_nodes_name(tmp_path: Path) -> None:
    """OpenVINO calls it after the tensor, "y"; layers are given to components by their nodes' names."""
    engine = _build(tiny.floating(tmp_path / "m.onnx"), tmp_path / "engine", "fp32")
    model = openvino.Core().read_model(engine.path / engine.entry)
    names = {operation.get_friendly_name() for operation in model.get_ordered_ops()}
    assert "relu" in names
    assert "y" not in names
    assert [set(output.get_names()) for output in model.outputs] == [{"y"}]
