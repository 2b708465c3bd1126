"""Export: the engine of a model for a target, its precision, and the demo's network really in int8."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import open_set
from compress.errors import CompressError
from compress.export import BUILDERS, export, export_onnx
from compress.model import Input, Model
from compress.program import run_program
from compress.quantize import quantize
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import targets
from runtimes.backends import Layer, open_engine
from runtimes.engine import Engine
from runtimes.spec import Dim, Feed
from tests.compress.quantize import networks

CPUS = ("openvino-cpu", "onnxruntime-cpu")
FULLY_CONNECTED = {"FullyConnected", "MatMulIntegerToFloat", "QGemm"}


def opened(engine: Engine, feed: Feed) -> tuple[np.ndarray, list[Layer]]:
    runner = open_engine(engine, threads=1)
    try:
        return runner.run(dict(feed))["output"], runner.layers()
    finally:
        runner.close()


@pytest.mark.parametrize("name", CPUS)
def test_a_float_model_is_built_in_fp32_and_answers_as_torch(tmp_path: Path, name: str) -> None:
    model = networks.make(networks.Everything)
    engine = export(model, targets()[name], tmp_path / "engine")
    assert (engine.precision, engine.state, engine.backend) == ("fp32", "runnable", targets()[name].backend)
    (feed,) = networks.samples(model, 8).batches(8)
    found, layers = opened(engine, feed)
    np.testing.assert_allclose(found, run_program(model, feed)["output"], atol=1e-5)
    assert not [layer for layer in layers if layer.precision == "int8"]


@pytest.mark.parametrize("name", CPUS)
def test_a_quantized_model_is_built_in_int8_and_runs_in_it(tmp_path: Path, name: str) -> None:
    model = networks.quantized(networks.Everything)
    engine = export(model, targets()[name], tmp_path / "engine")
    assert engine.precision == "int8"
    (feed,) = networks.samples(model, 8).batches(8)
    found, layers = opened(engine, feed)
    expected = run_program(convert(model), feed)["output"]
    # OpenVINO computes what is not int8 in bf16, whose steps are 1/128
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    assert sum(layer.type in FULLY_CONNECTED and layer.precision == "int8" for layer in layers) == 4


def test_the_half_control_has_the_targets_half_precision(tmp_path: Path) -> None:
    target = targets()["openvino-cpu"]
    engine = export(networks.make(networks.TwoReaders), target, tmp_path / "half", precision=target.half)
    assert engine.precision == target.half == "bf16"


def test_a_scheme_of_another_target_is_refused(tmp_path: Path) -> None:
    model = networks.quantized(networks.TwoReaders, "tensorrt")
    with pytest.raises(CompressError, match="with the scheme 'tensorrt', target 'openvino-cpu' runs 'x86-vnni'"):
        export(model, targets()["openvino-cpu"], tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_every_targets_backend_has_a_builder() -> None:
    assert {target.backend for target in targets().values()} == set(BUILDERS)


def test_two_builds_have_one_digest(tmp_path: Path) -> None:
    model = networks.quantized(networks.TwoReaders)
    first, second = (export(model, targets()["openvino-cpu"], tmp_path / name) for name in "ab")
    assert first.digest == second.digest
    assert len(first.source) == 64
    onnx = export_onnx(model, targets()["openvino-cpu"], tmp_path / "m.onnx")
    assert export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "n.onnx").read_bytes() == onnx.read_bytes()


@pytest.fixture(scope="module")
def demo() -> tuple[Model, Feed, int, int]:
    """The demo's network at full width with fresh weights, quantized; a feed; how many linear layers, and products."""
    from compress.zoo.digits_vqa import LONGEST, SHORTEST, WORDS, build

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    feed = {
        "image": rng.uniform(size=(4, 1, 8, 8)).astype(np.float32), "question": rng.integers(1, WORDS, (4, 8)),
    }  # fmt: skip
    question = Input(modality="text", dims=("batch", Dim("length", SHORTEST, 8, LONGEST)))
    model = export_model(build().eval(), name="demo", example=feed, inputs={"question": question})
    result = quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni")
    int8 = collections.Counter(o["op"].partition(" ")[0] for o in result.operators if o["precision"] == "int8")
    return result.model, feed, int8["linear"], int8["attention"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CPUS)
def test_the_demos_linear_layers_all_run_in_int8(tmp_path: Path, demo: tuple[Model, Feed, int, int], name: str) -> None:
    model, feed, linear, products = demo
    found, layers = opened(export(model, targets()[name], tmp_path / "engine"), feed)
    assert linear >= 25
    assert products == 8
    int8 = collections.Counter(layer.type for layer in layers if layer.precision == "int8")
    if name == "openvino-cpu":      # which computes an attention in one kernel
        assert (int8["FullyConnected"], int8["Subgraph of MatMul"]) == (linear, products / 2)
    else:
        assert int8["MatMulIntegerToFloat"] + int8["QGemm"] + int8["QLinearMatMul"] == linear + products
    multiply = {"Gemm", "Conv", "Convolution"}
    rest = [layer.name for layer in layers if layer.type in multiply and layer.precision != "int8"]
    assert rest == []
    expected = run_program(convert(model), feed)["output"]
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
