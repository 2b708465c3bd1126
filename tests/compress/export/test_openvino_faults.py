"""Graphs that OpenVINO answers wrongly as they are, and rightly as they are built."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import compress
from calibration import open_set, write
from compress import Dim, Input
from compress.export import export, export_onnx
from compress.export.openvino_faults import avoid_faults
from compress.export.pairs import drop_pairs
from compress.modelfile import read_model
from compress.program import run_program
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import get_target
from compress.zoo import image_text
from runtimes.backends import open_engine


@pytest.mark.parametrize(("kind", "of"), [("max", "x"), ("min", "x"), *(
    (kind, of) for kind in ("max", "min", "mean", "sum") for of in ("multiplied", "turned"))])
def test_what_is_quantized_behind_a_reduction_keeps_its_sign_and_its_factor(tmp_path, rng, kind, of):
    x, factor = rng.uniform(-0.6, 0.8, (4, 7, 32)).astype(np.float32), rng.uniform(0.5, 1.5, 32).astype(np.float32)
    constants = {"axes": np.array([2 if of == "turned" else 1]), "scale": np.float32(0.0066), "zero": np.uint8(108),
                 "factor": factor}
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["x", "s"], ["swish"], name="swish"),
        helper.make_node("Mul", ["swish", "factor"], ["multiplied"], name="multiply"),
        helper.make_node("Transpose", ["multiplied"], ["turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node(f"Reduce{kind.title()}", [of, "axes"], ["r"], name="reduce", keepdims=0),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
    ]
    graph = helper.make_graph(
        nodes, "reduce", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    reduced = getattr(x if of == "x" else x / (1 + np.exp(-x)) * factor, kind)(axis=1)
    expected = (np.clip(np.round(reduced / 0.0066) + 108, 0, 255) - 108) * 0.0066
    wrong, right = _answers(tmp_path / "m.onnx", {"x": x})
    assert np.abs(wrong - expected).max() > 0.2
    np.testing.assert_allclose(right, expected, atol=0.0067)         # a rounding may fall to the other side


def test_a_convolution_keeps_its_bias(tmp_path, rng):
    torch.manual_seed(0)
    network = image_text.build(channels=8, width=16, hidden=32)
    with torch.no_grad():
        network.image_encoder.convolutions[0].bias.copy_(torch.linspace(1, 3, 8))
    batch, length = Dim("batch", 1, 4, 32), Dim("length", 1, 3, 8)
    feed = {"image": rng.uniform(0, 1, (8, 1, 8, 8)).astype(np.float32), "text": rng.integers(1, 9, (8, 3))}
    inputs = {"image": Input(modality="image", dims=(batch,)), "text": Input(modality="text", dims=(batch, length))}
    compress.save(network, tmp_path / "model.pt", example=feed, inputs=inputs)
    model = read_model(tmp_path / "model.pt")
    data = open_set(write(tmp_path / "data", feed), model.inputs)
    quantized = compress.quantize(model, data, scheme="x86-vnni").model
    path = _exported(quantized, tmp_path / "model.onnx")
    (expected,) = onnxruntime.InferenceSession(path).run(None, feed)
    wrong, right = _answers(path, feed)
    assert np.abs(wrong - expected).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(right, expected, atol=1e-3)     # a rounding may fall to the other side


def _spread(layer):
    """With output channels of different size, as training makes them."""
    with torch.no_grad():
        sizes = torch.logspace(-1, 1, len(layer.weight))[torch.randperm(len(layer.weight))]
        layer.weight.mul_(sizes.view(-1, *[1] * (layer.weight.ndim - 1)))
    return layer


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Then(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _excited(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


WITHOUT_BIAS = {
    "mean of tokens": ((12, 16), lambda: [nn.Linear(16, 16, bias=False), Then(lambda x: x.mean(1)), nn.Linear(16, 5)]),
    "leaky": ((4, 16, 16), lambda: [nn.Conv2d(4, 8, 3, bias=False), Then(lambda x: torch.where(x > 0, x, x * 0.1))]),
    "deviation": ((4, 16, 16), lambda: [nn.Conv2d(4, 6, 3), nn.ReLU(), _spread(nn.Conv2d(6, 8, 3, bias=False)),
                                        Then(lambda x: x.flatten(2).std(2))]),
    "squeeze-excite": ((4, 16, 16), lambda: [_spread(nn.Conv2d(4, 8, 3, bias=False)), Then(_excited)]),
    "bias of zeros": ((4, 16, 16), lambda: [nn.Conv2d(4, 6, 3), nn.ReLU(), _spread(nn.Conv2d(6, 8, 3, bias=False)),
                                            nn.BatchNorm2d(8), Then(_excited)]),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_BIAS)
def test_a_layer_without_a_bias_keeps_its_scales(tmp_path, rng, case):
    shape, layers = WITHOUT_BIAS[case]
    torch.manual_seed(0)
    feed = {"x": rng.normal(size=(16, *shape)).astype(np.float32)}
    inputs = {"x": Input(modality="sensor", dims=(Dim("batch", 1, 2, 16),))}
    model = export_model(Net(*layers()).eval(), name="net", example=feed, inputs=inputs)
    data = open_set(write(tmp_path / "data", feed), model.inputs)
    quantized = compress.quantize(model, data, scheme="x86-vnni").model
    path = _exported(quantized, tmp_path / "model.onnx")
    (expected,) = onnxruntime.InferenceSession(path).run(None, feed)
    wrong, right = _answers(path, feed)
    assert np.abs(wrong - expected).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(right, expected, atol=2e-3 * np.abs(expected).max())


DOUBLES = {
    "quantized": lambda x: x.float(),
    "scaled": lambda x: x.float() * 0.5,
}


@pytest.mark.parametrize("how", DOUBLES)
def test_an_input_of_float64_is_converted_before_it_is_quantized(tmp_path, rng, how):
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            return self.layer(DOUBLES[how](x).float())

    feed = {"x": rng.normal(size=(16, 8))}
    model = export_model(Doubles(), name="doubles", example=feed)
    quantized = compress.quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni").model
    path = export_onnx(quantized, get_target("openvino-cpu"), tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match="does not support f64"):
        openvino.Core().compile_model(path, "CPU")
    np.testing.assert_allclose(_built(quantized, tmp_path, feed), run_program(convert(quantized), feed)["output"],
                               atol=1e-5)


@pytest.mark.parametrize("type", [torch.float64, torch.float16, torch.bfloat16])
def test_a_layer_of_another_type_is_left_alone(tmp_path, rng, type):
    """The bias and the maximum that float32 is given would not fit it."""
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8, bias=False).to(type), nn.Linear(8, 4)

        def forward(self, x):
            tokens = self.first(x.to(type))
            return self.last((tokens.amax(1) + tokens.mean(1)).float())

    feed = {"x": rng.normal(size=(16, 3, 8)).astype(np.float32)}
    model = export_model(Mixed().eval(), name="mixed", example=feed)
    result = compress.quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni")
    assert [one["precision"] for one in result.operators] == ["float", "int8"]
    answer = run_program(convert(result.model), feed)["output"]
    np.testing.assert_allclose(_built(result.model, tmp_path, feed), answer, atol=0.02)     # a step of bfloat16


BORDERS = {
    "pictures": ((3, 12, 12), lambda: [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, 2, padding=1)]),
    "one side": ((3, 12, 12), lambda: [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1, 2, padding=(1, 0))]),
    "an output": ((3, 12, 12), lambda: [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, 2, padding=1, bias=False)]),
    "sounds": ((3, 12), lambda: [nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1, 2, padding=1)]),
}


@pytest.mark.parametrize("case", BORDERS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_border_of_a_convolution_of_one_place_is_kept(tmp_path, rng, case, precision):
    shape, layers = BORDERS[case]
    torch.manual_seed(0)
    feed = {"x": rng.normal(size=(16, *shape)).astype(np.float32)}
    model = export_model(Net(*layers()).eval(), name="net", example=feed)
    if precision == "int8":
        model = compress.quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni").model
    path = export_onnx(model, get_target("openvino-cpu"), tmp_path / "model.onnx")
    expected = run_program(convert(model) if precision == "int8" else model, feed)["output"]
    assert openvino.Core().compile_model(path, "CPU")(feed)[0].shape != expected.shape
    np.testing.assert_allclose(_built(model, tmp_path, feed), expected, atol=0.02 * np.abs(expected).max())


def test_an_output_that_is_rewritten_keeps_its_name(tmp_path):
    """The maximum and the layer are both outputs, and read by others."""
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

        def forward(self, x):
            tokens = self.first(x)
            largest = tokens.amax(1)
            return {"tokens": tokens, "largest": largest, "answer": self.last(largest)}

    feed = {"x": np.linspace(-1, 1, 96, dtype=np.float32).reshape(4, 3, 8)}
    inputs = {"x": Input(modality="sensor", dims=(Dim("batch", 1, 2, 16),))}
    model = export_model(Both().eval(), name="both", example=feed, inputs=inputs)
    data = open_set(write(tmp_path / "data", feed), model.inputs)
    quantized = compress.quantize(model, data, scheme="x86-vnni").model
    expected = run_program(convert(quantized), feed)
    runner = open_engine(compress.export(quantized, get_target("openvino-cpu"), tmp_path / "engine"), threads=1)
    answers = runner.run(feed)
    assert answers.keys() == expected.keys()
    for name, value in answers.items():
        np.testing.assert_allclose(value, expected[name], atol=0.02)


def _exported(model, path):
    """The ONNX file that OpenVINO is given."""
    export_onnx(model, get_target("openvino-cpu"), path)
    graph = onnx.load(path)
    drop_pairs(graph)
    onnx.save(graph, path)
    return path


def _built(model, folder, feed):
    """The answer of the engine."""
    runner = open_engine(export(model, get_target("openvino-cpu"), folder / "engine"), threads=1)
    try:
        return runner.run(feed)["output"]
    finally:
        runner.close()


def _answers(path, feed):
    """Of the graph as it is read, and as it is built."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    answers = []
    for avoid in (False, True):
        model = core.read_model(path)
        if avoid:
            avoid_faults(model)
        answers.append(core.compile_model(model, "CPU", settings)(feed)[0])
    return answers
