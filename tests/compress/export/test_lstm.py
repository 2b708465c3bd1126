"""LSTMs in int8: what each backend's kernel is given, what it computes, and what it computes wrongly."""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from openvino import opset13 as operations
from torch import Tensor, nn

from calibration import open_set
from compress.export import export, onnxruntime_lstm, openvino_lstm
from compress.model import Dim, Input, Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.annotate import find_operators
from compress.quantize.prepare import convert
from compress.quantize.schemes import get_scheme
from compress.saving import export_model
from compress.targets import get_target
from runtimes.backends import open_engine

WIDTH = 24


class Reader(nn.Module):
    """Two layers of both directions over a sequence, the largest value of each unit, and a linear layer."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 32, num_layers=layers, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(3 * x)[0].amax(1))


class One(Reader):
    """For one sequence at a time, whose state is a constant."""


class Both(Reader):
    """A linear layer reads what the LSTM reads."""

    def __init__(self) -> None:
        super().__init__(layers=1)
        self.beside = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        wide = 3 * x
        return self.head(self.lstm(wide)[0].amax(1)) + self.beside(wide).mean(1)


def sequences(count: int, length: int = 7) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, length, WIDTH)).astype(np.float32)


@functools.cache
def model_of(network: type[nn.Module]) -> Model:
    torch.manual_seed(0)
    module = network().eval()
    if network is One:
        inputs = {"x": Input(modality="sensor", dims=(Dim("batch", 1, 1, 1), Dim("length", 1, 7, 20)))}
        return export_model(module, name="one", example={"x": sequences(1)}, inputs=inputs)
    return export_model(module, name="network", example={"x": sequences(2)})


@functools.cache
def quantized(network: type[nn.Module]) -> Model:
    model = model_of(network)
    return quantize(model, open_set([{"x": sequences(48)}], model.inputs, name="noise"), scheme="x86-vnni").model


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def run_openvino(model: Any, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, collections.Counter[tuple[str, str]]]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    ran = collections.Counter((str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos)
    return compiled(feed)[0], ran


@pytest.mark.parametrize("network", [Reader, Both, One])
def test_openvino_runs_every_layer_and_direction_in_int8(tmp_path: Path, network: type[nn.Module]) -> None:
    model, feed = quantized(network), {"x": sequences(1 if network is One else 16)}
    export(model, get_target("openvino-cpu"), tmp_path / "engine")
    found, ran = run_openvino(tmp_path / "engine/model.xml", feed)
    assert ran["RNNSeq", "u8"] == (2 if network is Both else 4)
    assert not ran["RNNSeq", "f32"]
    assert error(found, run_program(model_of(network), feed)["output"]) < 0.03
    assert error(found, run_program(convert(model), feed)["output"]) < 0.03


@pytest.mark.parametrize("network", [Reader, Both])
def test_onnxruntime_runs_every_layer_in_int8(tmp_path: Path, network: type[nn.Module]) -> None:
    model, feed = quantized(network), {"x": sequences(16)}
    export(model, get_target("onnxruntime-cpu"), tmp_path / "engine")
    graph = onnx.load(tmp_path / "engine/model.onnx").graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert kinds["DynamicQuantizeLSTM"] == (2 if network is Reader else 1)
    assert not kinds["LSTM"]
    read = {name for node in graph.node for name in node.input}
    assert all(tensor.name in read for tensor in graph.initializer)
    (found,) = onnxruntime.InferenceSession(tmp_path / "engine/model.onnx").run(None, feed)
    assert error(found, run_program(model_of(network), feed)["output"]) < 0.03


def test_what_the_lstm_alone_reads_is_quantized_once(tmp_path: Path) -> None:
    """ONNX Runtime's operator quantizes it in every run, OpenVINO's with the step of the state."""
    export(quantized(Reader), get_target("onnxruntime-cpu"), tmp_path / "runtime")
    export(quantized(Both), get_target("onnxruntime-cpu"), tmp_path / "both")
    pairs = [sum(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / name / "model.onnx").graph.node)
             for name in ("runtime", "both")]  # fmt: skip
    assert pairs == [1, 2]      # the head's; and what the layer beside reads
    export(quantized(Reader), get_target("openvino-cpu"), tmp_path / "openvino")
    model = openvino.Core().read_model(tmp_path / "openvino/model.xml")
    kinds = collections.Counter(operation.get_type_name() for operation in model.get_ordered_ops())
    assert kinds["FakeQuantize"] == 5       # what each layer reads and its state, and what the head reads


def lstm(width: int, read: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    """A layer that reads ``(1, length, width)`` within -1 and 1; ``read`` are integers and steps of both weights."""
    x = operations.parameter([1, -1, width], np.float32, name="x")
    ends = [np.float32(end) for end in (openvino_lstm.LOW, 1, openvino_lstm.LOW, 1)]
    zeros = np.zeros((1, 1, width), np.float32)
    length = operations.gather(operations.shape_of(x, "i64"), np.array([1]), np.array(0))
    weights = [operations.multiply(operations.convert(operations.constant(w), "f32"), operations.constant(s))
               for w, s in read]  # fmt: skip
    bias = operations.constant(np.zeros((1, 4 * width), np.float32))
    layer = operations.lstm_sequence(operations.fake_quantize(x, *ends, 256), operations.constant(zeros),
                                     operations.constant(zeros), length, *weights, bias, width, "forward")
    return openvino.Model([layer.output(0)], [x], "layer")


def test_steps_of_rows_are_taken_in_another_order_and_those_of_units_are_not() -> None:
    """The fault that the scheme goes round: if this fails, a step for each row may be used."""
    rng, width = np.random.default_rng(0), 64
    weights = [(rng.standard_normal((1, 4 * width, width)) * np.repeat([0.05, 0.1, 0.2, 0.4], width)[:, None])
               .astype(np.float32) for _ in range(2)]  # fmt: skip
    feed = {"x": rng.uniform(-1, 1, (1, 30, width)).astype(np.float32)}
    rows = np.maximum(*(np.abs(weight).max(2, keepdims=True) for weight in weights)) / 127
    by_row = [(np.rint(weight / rows).astype(np.int8), rows.astype(np.float32)) for weight in weights]
    expected = by_hand(*weights, feed["x"][0])
    wrong, ran = run_openvino(lstm(width, by_row), feed)
    assert ran["RNNSeq", "u8"] == 1
    assert error(wrong[0, 0], expected) > 0.1
    right, _ = run_openvino(lstm(width, openvino_lstm.integers_of(*weights)), feed)
    assert error(right[0, 0], expected) < 0.04


def by_hand(read: np.ndarray, state: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What a layer gives: gates in OpenVINO's order, forget, input, cell, output."""
    hidden = cell = np.zeros(state.shape[2])
    found = []
    for step in x:
        gates = np.split(read[0].astype(np.float64) @ step + state[0] @ hidden, 4)
        forget, enter, _, leave = (1 / (1 + np.exp(-gate)) for gate in gates)
        cell = forget * cell + enter * np.tanh(gates[2])
        hidden = leave * np.tanh(cell)
        found.append(hidden)
    return np.array(found)


def test_integers_that_gates_and_weights_share_a_step_of() -> None:
    read = np.zeros((1, 8, 1), np.float32)          # two units
    state = np.zeros((1, 8, 2), np.float32)
    read[0, :, 0] = [1, 0, -2, 0, 0.5, 0, 0, 0]     # of the first unit in four gates
    state[0, 6] = [4, -1]                           # its last gate
    (first, steps), (second, same) = openvino_lstm.integers_of(read, state)
    np.testing.assert_allclose(steps[0, :, 0], [4 / 127, 1] * 4)    # a unit of zeros has step 1
    np.testing.assert_array_equal(steps, same)
    np.testing.assert_array_equal(first[0, :, 0], [32, 0, -64, 0, 16, 0, 0, 0])     # 31.75, -63.5 to even, 15.875
    np.testing.assert_array_equal(second[0, 6], [127, -32])


def test_integers_of_onnxruntime_have_a_step_for_each_row() -> None:
    weight = np.zeros((1, 4, 2), np.float32)
    weight[0, 0], weight[0, 3] = [1, -0.5], [0.1, 0.2]
    integers, steps = onnxruntime_lstm.integers_of(weight)
    assert integers.shape == (1, 2, 4)
    np.testing.assert_allclose(steps, [[1 / 127, 1, 1, 0.2 / 127]], rtol=1e-6)
    np.testing.assert_array_equal(integers[0].T, [[127, -64], [0, 0], [0, 0], [64, 127]])    # -63.5 to even, 63.5


class Given(nn.Module):
    """An LSTM that begins with zeros, and one that begins in a state that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros, self.given = nn.LSTM(WIDTH, 4, batch_first=True), nn.LSTM(WIDTH, 4, batch_first=True)
        self.gru, self.head = nn.GRU(WIDTH, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        zeros = torch.zeros(1, x.shape[0], 4)
        given = state.transpose(0, 1)
        found = self.zeros(x, (zeros, zeros))[0] + self.given(x, (given, given))[0] + self.gru(x)[0]
        return self.head(found)


def test_a_state_that_is_given_and_a_gru_stay_in_float() -> None:
    model = export_model(Given().eval(), name="given", example={"x": sequences(2), "state": np.zeros((2, 1, 4), "f")})
    module = model.graph.program.module(check_guards=False)
    assert {o.path: o.float_reason for o in find_operators(module, (), get_scheme("x86-vnni"))} == {
        "zeros": None, "given": "it begins in a state that it is given, whose range nothing bounds",
        "gru": "this release has no int8 form of it", "head": None,
    }  # fmt: skip
    assert {o.path: o.float_reason for o in find_operators(module, (), get_scheme("arm64"))}["zeros"] == (
        "scheme 'arm64' runs recurrent layers in float")


class Heard(nn.Module):
    """A convolution, whose result is quantized, an LSTM that reads it, and another that reads what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, 16, 3, padding=1)
        self.first, self.second = nn.LSTM(16, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        heard = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.second(self.first(heard)[0])[0].amax(1))


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
@pytest.mark.parametrize(("kept", "low"), [((), 2), (("first",), 1), (("second",), 1), (("first", "second"), 0)])
def test_one_that_is_kept_in_float_stays_there(tmp_path: Path, target: str, kept: tuple[str, ...], low: int) -> None:
    """Though it reads integers: those of a convolution, or of an LSTM in int8."""
    model, feed = model_of(Heard), {"x": sequences(16)}
    data = open_set([{"x": sequences(48)}], model.inputs, name="noise")
    quantized = quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(keep_float=kept)).model
    runner = open_engine(export(quantized, get_target(target), tmp_path / "engine"), threads=1)
    try:
        found, layers = runner.run(feed)["output"], runner.layers()
    finally:
        runner.close()
    ran = [layer.precision for layer in layers if layer.type in ("LSTM", "DynamicQuantizeLSTM", "RNNSeq")]
    assert (ran.count("int8"), len(ran)) == (low, 2)
    assert error(found, run_program(convert(quantized), feed)["output"]) < 0.02


def test_a_float_engine_keeps_its_lstms(tmp_path: Path) -> None:
    export(model_of(Reader), get_target("onnxruntime-cpu"), tmp_path / "engine")
    kinds = collections.Counter(node.op_type for node in onnx.load(tmp_path / "engine/model.onnx").graph.node)
    assert (kinds["LSTM"], kinds["DynamicQuantizeLSTM"]) == (2, 0)


class Alike(nn.Module):
    """LSTMs of one shape, as layers of one, or each for itself."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTM(32, 32, 1 if apart else 2, batch_first=True) for _ in range(1 + apart)])
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for lstm in self.layers:
            x = lstm(x)[0]
        return self.head(x)


@pytest.mark.parametrize("apart", [False, True], ids=["layers", "apart"])
def test_openvino_keeps_kernels_by_shape_so_one_of_a_shape_is_in_int8(tmp_path: Path, apart: bool) -> None:
    """With the steps of the first for both the answers would be off by as much as they are large."""
    torch.manual_seed(3)
    x = np.random.default_rng(0).standard_normal((64, 6, 32), np.float32)
    model = export_model(Alike(apart).eval(), name="alike", example={"x": x[:2]}, inputs={"x": Input(dims=("batch",))})
    quantized = quantize(model, open_set([{"x": x}], model.inputs), scheme="x86-vnni").model
    runner = open_engine(export(quantized, get_target("openvino-cpu"), tmp_path / "engine"), threads=1)
    try:
        found, layers = runner.run({"x": x[:9]})["output"], runner.layers()
    finally:
        runner.close()
    wanted = run_program(model, {"x": x[:9]})["output"]
    assert np.abs(found - wanted).max() < 0.04 * np.abs(wanted).max()
    assert sorted(layer.precision for layer in layers if layer.type == "RNNSeq") in (["f32", "int8"], ["bf16", "int8"])


class Twice(nn.Module):
    """One LSTM, as wide as what it reads, runs twice; ``on``, the second time from the state of the first."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.on, self.lstm, self.head = on, nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :16]
        first, state = self.lstm(x)
        second, _ = self.lstm(x.flip(2), state) if self.on else self.lstm(x.flip(2))
        return self.head(first + second)


@pytest.mark.parametrize("on", [False, True])
def test_onnxruntime_runs_one_lstm_twice(tmp_path: Path, on: bool) -> None:
    torch.manual_seed(3)
    model = export_model(Twice(on).eval(), name="twice", example={"x": sequences(2)})
    result = quantize(model, open_set([{"x": sequences(48)}], model.inputs, name="noise"), scheme="x86-vnni")
    assert [one["precision"] for one in result.operators] == ["int8", "float" if on else "int8", "int8"]
    export(result.model, get_target("onnxruntime-cpu"), tmp_path / "engine")
    graph = onnx.load(tmp_path / "engine/model.onnx").graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert (kinds["DynamicQuantizeLSTM"], kinds["LSTM"]) == ((1, 1) if on else (2, 0))
    weights = [tensor for tensor in graph.initializer if tensor.data_type == tensor.INT8 and len(tensor.dims) == 3]
    assert len(weights) == 2    # what is read and the state, once for both
    (found,) = onnxruntime.InferenceSession(tmp_path / "engine/model.onnx").run(None, {"x": sequences(16)})
    assert error(found, run_program(model, {"x": sequences(16)})["output"]) < 0.03
