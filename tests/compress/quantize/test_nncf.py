"""Int8 of an ONNX file: NNCF chooses where, the integers are the scheme's, the answers stay what they were."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import calibration
import compress
from calibration import CalibrationSet
from compress import CompressError, QuantizeConfig
from compress.cli import cli
from compress.onnxmodel import KEY, OnnxModel, write_onnx_model
from compress.quantize.nncf import use_integers
from compress.quantize.schemes import SCHEMES
from compress.targets import get_target
from runtimes.backends import open_engine
from tests.compress.onnxfiles import classifier, expected, write

pytest.importorskip("nncf", reason="nncf is not installed: an ONNX file cannot be quantized")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (40, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    loaded = compress.load(write(tmp_path / "net.onnx"))
    assert isinstance(loaded, OnnxModel)
    return loaded


@pytest.fixture
def data(tmp_path: Path, model: OnnxModel, images: np.ndarray) -> CalibrationSet:
    calibration.write(tmp_path / "calibration", {"image": images})
    return calibration.open_set(tmp_path / "calibration", model.inputs)


@pytest.mark.parametrize("scheme", ["x86-vnni", "x86", "arm64", "tensorrt"])
def test_integers_are_the_schemes(model: OnnxModel, data: CalibrationSet, scheme: str) -> None:
    result = compress.quantize(model, data, scheme=scheme)
    assert isinstance(result.model, OnnxModel)
    proto = result.model.read()
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    integers = SCHEMES[scheme]
    zeros = [held[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert {zero.dtype.name for zero in zeros} == {integers.activations.dtype}
    assert not integers.activations.symmetric or not np.any(zeros)
    weights = [held[node.input[0]] for node in proto.graph.node
               if node.op_type == "DequantizeLinear" and node.input[0] in held]  # fmt: skip
    assert len(weights) == 2
    most = 64 if scheme == "x86" else 127       # seven bits where eight could saturate
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == most
    assert {(row["path"], row["op"], row["precision"]) for row in result.operators} == {
        ("conv", "Conv", "int8"), ("matmul", "MatMul", "int8")}  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_engines_answer_as_the_float_file(
    model: OnnxModel, data: CalibrationSet, images: np.ndarray, target: str, tmp_path: Path
) -> None:
    row = get_target(target)
    quantized = compress.quantize(model, data, scheme=row.scheme, config=QuantizeConfig(ranges="minmax")).model
    engine = compress.export(quantized, row, tmp_path / "engine")
    assert engine.precision == "int8"
    runner = open_engine(engine)
    try:
        got = runner.run({"image": images})["scores"]
        layers = runner.layers({"image": images[:1]})
    finally:
        runner.close()
    wanted = expected(model.read(), images)
    assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()
    assert "int8" in {layer.precision for layer in layers if "Conv" in layer.type}


def test_ranges_cover_what_the_samples_reach(model: OnnxModel, data: CalibrationSet, images: np.ndarray) -> None:
    result = compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(ranges="minmax"))
    assert result.model.quantization is not None
    low, high = result.model.quantization.ranges["forward"]["image"]
    assert low == pytest.approx(images.min(), abs=0.01)
    assert high == pytest.approx(images.max(), abs=0.01)
    settings = result.model.quantization.settings
    assert (settings["samples"], settings["data"]) == (40, data.digest)
    assert settings["by"].startswith("nncf ")


def test_samples_and_progress(model: OnnxModel, data: CalibrationSet) -> None:
    told: list[tuple[int, int]] = []
    result = compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(samples=10),
                               progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert result.samples == 10
    assert told[-1] == (10, 10)


def test_what_is_kept_in_float(model: OnnxModel, data: CalibrationSet) -> None:
    result = compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(keep_float=("mat*",)))
    assert {row["path"]: (row["precision"], row["reason"]) for row in result.operators} == {
        "conv": ("int8", None), "matmul": ("float", "kept float by 'mat*'")}  # fmt: skip
    with pytest.raises(CompressError, match=r"keep_float 'fc\*' matches no operator .* called as conv, matmul"):
        compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(keep_float=("fc*",)))
    with pytest.raises(CompressError, match=r"nothing in model 'net' can run in int8: NNCF quantized none of its 2"):
        compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(keep_float=("*",)))


def test_settings_that_nncf_has_not_are_refused(model: OnnxModel, data: CalibrationSet) -> None:
    with pytest.raises(CompressError, match="NNCF quantizes an ONNX file, and has no 'entropy' ranges"):
        compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(ranges="entropy"))
    with pytest.raises(CompressError, match="the setting 'smooth' is for PyTorch models: an ONNX file is quantized by"):
        compress.quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(smooth=0.5))


def test_it_is_written_and_read_again(model: OnnxModel, data: CalibrationSet, tmp_path: Path) -> None:
    quantized = compress.quantize(model, data, scheme="arm64").model
    assert isinstance(quantized, OnnxModel)
    write_onnx_model(quantized, tmp_path / "net.int8.onnx")
    again = compress.load(tmp_path / "net.int8.onnx")
    assert again.quantization == quantized.quantization
    with pytest.raises(CompressError, match="is quantized already: quantize the float ONNX it was made from"):
        compress.quantize(again, data, scheme="arm64")
    with pytest.raises(CompressError, match="is quantized with the scheme 'arm64', target 'openvino-cpu' runs"):
        compress.export(again, get_target("openvino-cpu"), tmp_path / "engine")


@pytest.mark.parametrize(("value", "message"), [
    (None, "is quantized already, by something else"),
    ("{", "is damaged: the record of its quantization cannot be read"),
    ('{"format": "compress.quantization", "version": 99}', "was quantized by another version of compress"),
])  # fmt: skip
def test_another_record_is_refused(
    model: OnnxModel, data: CalibrationSet, tmp_path: Path, value: str | None, message: str
) -> None:
    quantized = compress.quantize(model, data, scheme="x86-vnni").model
    assert isinstance(quantized, OnnxModel)
    proto = quantized.read()
    del proto.metadata_props[:]
    if value is not None:
        proto.metadata_props.add(key=KEY, value=value)
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(CompressError, match=message):
        compress.load(tmp_path / "other.onnx")


def test_signed_steps_become_unsigned_ones_of_the_same_function() -> None:
    """128 higher: -3 of int8 is 125 of uint8; and 200 steps up to 255 are the same range as 401.6 up to 127."""
    for integers, zero, scale, wanted in (
        (SCHEMES["x86-vnni"].activations, np.int8(-3), 0.5, (np.uint8(125), 0.5)),
        (SCHEMES["tensorrt"].activations, np.uint8(0), 0.5, (np.int8(0), 0.5 * 255 / 127)),
    ):
        proto = _quantizing(zero, scale)
        use_integers(proto, integers)
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        assert held["zero"].dtype == wanted[0].dtype
        assert held["zero"] == wanted[0]
        assert held["scale"] == pytest.approx(wanted[1])
    with pytest.raises(CompressError, match="NNCF put the zero of 'zero' beside the middle"):
        use_integers(_quantizing(np.int8(5), 0.5), SCHEMES["tensorrt"].activations)


def _quantizing(zero: np.generic, scale: float) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    held = {"scale": np.array(scale, np.float32), "zero": np.array(zero)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]  # fmt: skip
    return helper.make_model(helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in held.items()]))


def test_a_file_that_onnx_runtime_cannot_run_is_told_of(tmp_path: Path, images: np.ndarray) -> None:
    proto = classifier()
    proto.graph.node[0].domain = "nobody"
    proto.opset_import.append(helper.make_opsetid("nobody", 1))
    model = compress.load(write(tmp_path / "odd.onnx", proto))
    calibration.write(tmp_path / "data", {"image": images})
    with pytest.raises(CompressError, match="NNCF cannot quantize 'odd': "):
        compress.quantize(model, calibration.open_set(tmp_path / "data", model.inputs), scheme="x86-vnni")


def test_without_nncf_it_says_what_to_install(
    model: OnnxModel, data: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(CompressError, match=r"quantized by NNCF, which is not installed .*compress-edge\[nncf\]"):
        compress.quantize(model, data, scheme="x86-vnni")


def test_command(data: CalibrationSet, tmp_path: Path) -> None:
    given = ["quantize", str(tmp_path / "net.onnx"), "--calibration", str(data.path), "--target", "onnxruntime-cpu"]
    done = CliRunner().invoke(cli, [*given, "--quiet"])
    assert done.exit_code == 0, done.output
    assert "net.int8.onnx: 2 operators in int8, 0 in float, scheme x86-vnni, 40 calibration samples" in done.output
    written = str(tmp_path / "net.int8.onnx")
    done = CliRunner().invoke(cli, ["export", written, "--target", "onnxruntime-cpu", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "int8 onnxruntime engine, runnable" in done.output
