"""Tables that rows are looked up in: int8 with a scale for each row, and only what was looked up is dequantized."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

from calibration import open_set
from compress import Dim, Input
from compress.export import export, export_onnx
from compress.model import Model
from compress.program import run_program
from compress.quantize import annotate, quantize
from compress.quantize.prepare import convert
from compress.quantize.schemes import get_scheme
from compress.saving import export_model
from compress.targets import get_target

ROWS, WIDTH = 5000, 64


class Words(nn.Module):
    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(rows, WIDTH), nn.Linear(WIDTH, 8)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.table(words).mean(1))


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"words": rng.integers(0, 100, (4, 6))} for _ in range(4)]


def model_of(network: nn.Module) -> Model:
    torch.manual_seed(0)
    inputs = {"words": Input(modality="text", dims=(Dim("batch", 1, 4, 8), Dim("length", 2, 6, 16)))}
    return export_model(network.eval(), name="words", example=feeds()[0], inputs=inputs)


def quantized(model: Model, scheme: str = "x86-vnni") -> Model:
    return quantize(model, open_set(feeds(), model.inputs), scheme=scheme).model


def test_each_row_has_the_integers_of_its_own_largest_value() -> None:
    model = model_of(Words())
    with torch.no_grad():
        model.weights["table.weight"][7] = torch.linspace(-2.54, 1.0, WIDTH)      # a step of 0.02
    (table,) = (node for node in convert(quantized(model)).graph.program.graph.nodes
                if "embedding" in str(node.target))  # fmt: skip
    integers, scales = table.args[0].args[:2]
    held = convert(quantized(model)).graph.program
    stored = {**held.state_dict, **held.constants}
    names = {spec.arg.name: spec.target for spec in held.graph_signature.input_specs}
    assert stored[names[scales.name]][7].item() == np.float32(0.02)
    row = stored[names[integers.name]][7].numpy()
    assert row.dtype == np.int8
    np.testing.assert_array_equal(row, np.round(np.linspace(-2.54, 1.0, WIDTH, dtype=np.float32) / np.float32(0.02)))


def test_the_file_has_a_quarter_of_the_table_and_backends_gather_integers(tmp_path: Path) -> None:
    model = model_of(Words())
    int8 = quantized(model)
    path = export_onnx(int8, get_target("openvino-cpu"), tmp_path / "model.onnx")
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (kinds["Gather"], kinds["Cast"], kinds["DequantizeLinear"]) == (2, 1, 2)
    assert path.stat().st_size < ROWS * WIDTH * 1.2
    feed = feeds()[0]
    expected = run_program(convert(int8), feed)["output"]
    (answer,) = onnxruntime.InferenceSession(path).run(None, feed)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    np.testing.assert_allclose(answer, run_program(model, feed)["output"], atol=0.02)
    engine = export(int8, get_target("openvino-cpu"), tmp_path / "engine")
    compiled = openvino.Core().compile_model(engine.path / engine.entry, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(feed)[0], expected, atol=1e-5)
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    assert [str(info["runtimePrecision"].value) for info in infos if str(info["layerType"].value) == "Gather"] == [
        "i8", "f32"]  # fmt: skip


def test_what_stays_float_and_why() -> None:
    def reason(network: nn.Module, scheme: str) -> str | None:
        module = model_of(network).graph.program.module(check_guards=False)
        return annotate.find_operators(module, (), get_scheme(scheme))[0].float_reason

    assert reason(Words(), "arm64") is None
    assert reason(Words(), "tensorrt") == "scheme 'tensorrt' looks tables up in float"
    assert "a table as small as this one" in str(reason(Words(rows=4000), "x86-vnni"))
    assert reason(Alone(), "x86-vnni") == "nothing that multiplies in its graph runs in int8"
