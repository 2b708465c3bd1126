"""Weights quantized alone in every backend: four bits in the file, and how many layers an engine runs with them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.bench.layers import asked_of, rows, unexpected
from compress.errors import CompressError
from compress.export import export, export_onnx, has_int8
from compress.export.rtx_libraries import ensure_rtx_libraries
from compress.export.tensorrt import build
from compress.ladder import check
from compress.model import Input, Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import targets
from runtimes.backends import Layer, open_engine
from runtimes.engine import Engine
from runtimes.engineset import EngineSet
from runtimes.spec import Dim, Feed

CPUS = ("openvino-cpu", "onnxruntime-cpu")
WIDTH = 64
INT4, INT8 = QuantizeConfig(int4_weights=("*",), group_size=32), QuantizeConfig(int8_weights=("*",))


class Step(nn.Module):
    """A decoder's block: attention over what is given, and a feed-forward network; seven layers, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
        self.words = nn.Linear(WIDTH, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).unsqueeze(1)       # one head
        seen = nn.functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        x = x + self.out(seen.squeeze(1))
        return self.words(self.last(x + self.down(nn.functional.gelu(self.up(x)))))


LAYERS = 7


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    inputs = {"x": Input(dims=(Dim("batch", 1, 1, 4), Dim("length", 1, 4, 16)))}
    return export_model(Step().eval(), name="step", example=feed(), inputs=inputs)


def feed() -> Feed:
    return {"x": np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)}


def quantized(model: Model, config: QuantizeConfig, scheme: str = "x86-vnni") -> Model:
    return quantize(model, open_set([feed()], model.inputs), scheme=scheme, config=config).model


def opened(engine: Engine) -> tuple[np.ndarray, list[Layer]]:
    runner = open_engine(engine, threads=1)
    try:
        return runner.run(feed())["output"], runner.layers(feed())
    finally:
        runner.close()


@pytest.mark.parametrize(("scheme", "kind", "zero"), [("x86-vnni", "UINT4", True), ("tensorrt", "INT4", False)])
def test_the_file_holds_four_bits_and_one_dequantize_a_weight(
    model: Model, tmp_path: Path, scheme: str, kind: str, zero: bool
) -> None:
    target = targets()["openvino-cpu" if zero else "rtx"]
    path = export_onnx(quantized(model, INT4, scheme), target, tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    loaded = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in loaded.opset_import if entry.domain == ""] == [("", 21)]
    constants = {tensor.name: tensor for tensor in loaded.graph.initializer}
    weights = [node for node in loaded.graph.node if node.op_type == "DequantizeLinear"]
    assert len(weights) == LAYERS
    for node in weights:
        held = [constants[name] for name in node.input]
        assert [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in held] == [
            kind, "FLOAT", *([kind] if zero else [])]  # fmt: skip
        inputs, outputs = held[0].dims
        assert len(held[0].raw_data) == inputs * outputs // 2
        assert list(held[1].dims) == [inputs // 32, outputs]
        assert {a.name: a.i for a in node.attribute} == {"axis": 0, "block_size": 32}
        (reader,) = (other for other in loaded.graph.node if node.output[0] in other.input)
        assert (reader.op_type, reader.input[1]) == ("MatMul", node.output[0])


def test_the_integers_of_the_file_are_those_of_the_program(model: Model, tmp_path: Path) -> None:
    int4 = quantized(model, INT4)
    loaded = onnx.load(export_onnx(int4, targets()["onnxruntime-cpu"], tmp_path / "model.onnx"))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    program = convert(int4).graph.program
    held = {name: value for name, value in {**program.state_dict, **program.constants}.items()
            if name.startswith("_groups_of_")}  # fmt: skip
    assert len(held) == 3 * LAYERS
    for name, value in held.items():
        np.testing.assert_array_equal(stored[f"{name}_transposed"].astype(value.numpy().dtype), value.numpy().T)


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize(("config", "precision"), [(INT4, "int4"), (INT8, "int8")], ids=["int4", "int8"])
def test_every_layer_runs_with_compressed_weights(
    model: Model, tmp_path: Path, name: str, config: QuantizeConfig, precision: str
) -> None:
    found = quantized(model, config)
    assert has_int8(found)
    engine = export(found, targets()[name], tmp_path / "engine")
    assert engine.precision == "int8"
    answer, layers = opened(engine)
    kind = "FullyConnected" if name == "openvino-cpu" else "MatMulNBits"
    assert collections.Counter(layer.precision for layer in layers if layer.type == kind) == {precision: LAYERS}
    assert not [layer.name for layer in layers if "QuantizeLinear" in layer.type or layer.type == "Convert"]
    # backends round what such a layer reads to int8, by rows
    expected = run_program(convert(found), feed())["output"]
    np.testing.assert_allclose(answer, expected, atol=0.05 * np.abs(expected).max())
    assert np.abs(answer - expected).mean() < 0.01 * np.abs(expected).max()


def test_an_engine_has_an_eighth_of_the_weights(model: Model, tmp_path: Path) -> None:
    """In float 40,960 weights of 4 bytes; in groups of 32 half a byte, and for 32 a scale and a zero point."""
    weights = WIDTH * WIDTH * 4 + 2 * WIDTH * 128 + WIDTH * 48
    for name in CPUS:
        engines = [export(one, targets()[name], tmp_path / f"{name}-{at}")
                   for at, one in enumerate((model, quantized(model, INT4)))]  # fmt: skip
        sizes = [sum(file.stat().st_size for file in engine.path.iterdir() if file.suffix in (".bin", ".onnx"))
                 for engine in engines]  # fmt: skip
        saved = weights * (4 - 0.5 - 4.5 / 32)
        assert sizes[0] - sizes[1] == pytest.approx(saved, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("config", [INT4, INT8, QuantizeConfig(int4_weights=("up",), int8_weights=("words",))],
                         ids=["int4", "int8", "mixed"])  # fmt: skip
@pytest.mark.parametrize("name", CPUS)
def test_every_form_answers_as_the_one_it_was_made_from(model: Model, name: str, config: QuantizeConfig) -> None:
    """But for the quantized program: an argmax of random weights has no margin for four bits."""
    result = check(quantized(model, config), targets()[name], open_set([feed()], model.inputs))
    steps = {step.name: step for step in result.steps}
    coarse = steps.pop("torch int8 x86-vnni")
    assert steps.keys() >= {"onnx int8 x86-vnni", f"{name} int8"}
    assert not [(step.name, step.flags) for step in steps.values() if step.flags]
    assert coarse.from_previous["output"].cosine > 0.98


def test_beside_layers_in_int8(model: Model, tmp_path: Path) -> None:
    """Two layers with int4 weights, one with int8 ones; four layers and the two products of attention in int8."""
    found = quantized(model, QuantizeConfig(int4_weights=("up", "down"), int8_weights=("words",)))
    _, layers = opened(export(found, targets()["openvino-cpu"], tmp_path / "engine"))
    counts = collections.Counter(layer.precision for layer in layers if layer.type == "FullyConnected")
    assert counts == {"int4": 2, "int8": 5}
    _, layers = opened(export(found, targets()["onnxruntime-cpu"], tmp_path / "other"))
    counts = collections.Counter((layer.type, layer.precision) for layer in layers if "MatMul" in layer.type)
    assert counts == {("MatMulNBits", "int4"): 2, ("MatMulNBits", "int8"): 1, ("MatMulIntegerToFloat", "int8"): 5,
                      ("QLinearMatMul", "int8"): 1}  # fmt: skip


class Matrices(nn.Module):
    """Layers that read matrices, which torch's exporter makes a Gemm of, the last with a table's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH, bias=False)
        self.words = nn.Linear(WIDTH, 96, bias=False)
        self.words.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(self.down(torch.relu(self.up(self.table(ids).mean(1)))))


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize(("config", "precision"), [(INT4, "int4"), (INT8, "int8")], ids=["int4", "int8"])
def test_layers_that_read_matrices_run_with_them_too(
    tmp_path: Path, name: str, config: QuantizeConfig, precision: str
) -> None:
    torch.manual_seed(0)
    ids = {"ids": np.random.default_rng(0).integers(0, 96, (3, 5))}
    model = export_model(Matrices().eval(), name="matrices", example=ids, inputs={"ids": Input(dims=("batch",))})
    found = quantize(model, open_set([ids], model.inputs), scheme="x86-vnni", config=config).model
    engine = export(found, targets()[name], tmp_path / "engine")
    with contextlib.closing(open_engine(engine, threads=1)) as runner:
        layers, answer = runner.layers(ids), runner.run(ids)["output"]
    kind = "FullyConnected" if name == "openvino-cpu" else "MatMulNBits"
    assert collections.Counter(layer.precision for layer in layers if layer.type == kind) == {precision: 3}
    assert not [layer.name for layer in layers if layer.type in ("Gemm", "MatMul", "DequantizeLinear")]
    expected = run_program(convert(found), ids)["output"]
    np.testing.assert_allclose(answer, expected, atol=0.05 * np.abs(expected).max())
    assert unexpected(asked_of(EngineSet(engines={"forward": engine})), rows(
        {**dataclasses.asdict(layer), "graph": "forward"} for layer in layers)) == ()


@pytest.fixture
def _rtx() -> None:
    try:
        ensure_rtx_libraries()
    except CompressError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_rtx")
@pytest.mark.parametrize(("config", "tensors"), [(INT4, "7 INT4"), (INT8, "7 INT8")], ids=["int4", "int8"])
def test_tensorrts_builder_takes_them(model: Model, tmp_path: Path, config: QuantizeConfig, tensors: str) -> None:
    target = targets()["rtx"]
    found = quantized(model, config, "tensorrt")
    path = export_onnx(found, target, tmp_path / "model.onnx")
    engine = build(path, target, tmp_path / "engine", inputs=model.inputs, outputs=model.outputs, precision="int8")
    assert f"{LAYERS} DEQUANTIZE" in engine.notes[1]
    assert " QUANTIZE" not in engine.notes[1]
    assert tensors in engine.notes[2]


def test_a_jetsons_recipe_has_them(model: Model, tmp_path: Path) -> None:
    engine = export(quantized(model, INT4, "tensorrt"), targets()["jetson-orin-nano"], tmp_path / "engine")
    graph = onnx.load(engine.path / "model.onnx").graph
    kinds = collections.Counter(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer)
    assert kinds["INT4"] == LAYERS
    assert kinds["FLOAT16"] >= LAYERS      # the steps, as what the layers read is float16
