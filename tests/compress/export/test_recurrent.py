"""LSTM, GRU and RNN in engines: one for every batch and length, equal to torch; built by TensorRT for RTX too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.export import export, export_onnx
from compress.export.rtx_libraries import ensure_rtx_libraries
from compress.model import Input, Model
from compress.program import run_program
from compress.quantize import quantize
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import targets
from runtimes.backends import open_engine
from runtimes.spec import Dim

CPUS = ("openvino-cpu", "onnxruntime-cpu")
SIZES = ((1, 1), (3, 5), (8, 32))
TWICE = {"num_layers": 2, "bidirectional": True, "batch_first": True}


class Sequence(nn.Module):
    """Embedded tokens through one recurrent layer: all its results, the state with the batch in front."""

    def __init__(self, kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(20, 8), kind(8, 6, **settings)

    def forward(self, tokens: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> dict[str, Tensor]:
        first = self.rnn.batch_first
        x = self.table(tokens) if first else self.table(tokens).transpose(0, 1)
        given = [value.transpose(0, 1).contiguous() for value in (h, c) if value is not None]
        y, state = self.rnn(x, None if not given else given[0] if len(given) == 1 else tuple(given))
        final = state if isinstance(state, tuple) else (state,)
        named = {f"final_{i}": value.transpose(0, 1) for i, value in enumerate(final)}
        return {"y": y if first else y.transpose(0, 1), **named}


class Reader(nn.Module):
    """A text of any length whose last states two linear layers judge."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.text = nn.Embedding(20, 8), nn.LSTM(8, 16, **TWICE)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.text(self.table(tokens))
        return self.head(torch.cat([h[-2], h[-1]], -1))


def make(module: nn.Module, states: int = 0) -> Model:
    example: dict[str, np.ndarray] = {"tokens": np.zeros((2, 8), np.int64)}
    if isinstance(module, Sequence):
        rows = module.rnn.num_layers * (2 if module.rnn.bidirectional else 1)
        example.update({name: np.zeros((2, rows, 6), np.float32) for name in "hc"[:states]})
    dims = (Dim("batch", 1, 2, 8), Dim("length", 1, 8, 32))
    return export_model(module, name="text", example=example, inputs={"tokens": Input(modality="text", dims=dims)})


def sized(model: Model, batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    feed: dict[str, np.ndarray] = {"tokens": rng.integers(0, 20, (batch, length))}
    return {**feed, **{s.name: rng.normal(size=(batch, *s.shape[1:])).astype(np.float32) for s in model.inputs[1:]}}


BARE = {"bias": False, "num_layers": 2}
NETWORKS = [
    (nn.LSTM, {}, True), (nn.LSTM, TWICE, True), (nn.LSTM, BARE, False), (nn.GRU, {}, False), (nn.GRU, TWICE, True),
    (nn.RNN, {**TWICE, "nonlinearity": "relu"}, False),
]  # fmt: skip
MORE = [
    (nn.LSTM, {}, False), (nn.LSTM, TWICE, False), (nn.LSTM, BARE, True), (nn.GRU, {}, True), (nn.GRU, TWICE, False),
    (nn.GRU, BARE, False), (nn.GRU, BARE, True), (nn.RNN, TWICE, False), (nn.RNN, TWICE, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "initial"), [*NETWORKS, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)]
)
def test_one_engine_answers_as_torch_at_every_size(
    tmp_path: Path, kind: type[nn.RNNBase], settings: dict[str, Any], initial: bool
) -> None:
    torch.manual_seed(0)
    module = Sequence(kind, settings).eval()
    model = make(module, (2 if kind is nn.LSTM else 1) if initial else 0)
    for name in CPUS:
        runner = open_engine(export(model, targets()[name], tmp_path / name), threads=1)
        try:
            for batch, length in SIZES:
                feed = sized(model, batch, length)
                with torch.no_grad():
                    expected = module(**{key: torch.from_numpy(value) for key, value in feed.items()})
                found = runner.run(feed)
                assert found.keys() == expected.keys()
                for key in expected:
                    np.testing.assert_allclose(found[key], expected[key].numpy(), atol=1e-5, rtol=0, err_msg=name)
        finally:
            runner.close()


def test_the_weights_in_the_onnx_are_constant_each_once_and_in_onnxs_order(tmp_path: Path) -> None:
    """A gate's rows hold its place in torch's order, i f g o: ONNX's order is i o f c."""
    module = nn.LSTM(3, 2, batch_first=True)
    with torch.no_grad():
        for parameter in module.parameters():
            gates = torch.arange(4.0).repeat_interleave(2)
            parameter.copy_(gates if parameter.dim() == 1 else gates[:, None].expand_as(parameter))
    model = export_model(
        module, name="lstm", example={"input": np.zeros((2, 5, 3), np.float32)},
        inputs={"input": Input(dims=("batch", Dim("length", 1, 5, 9)))},
    )  # fmt: skip
    graph = onnx.load(export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "m.onnx")).graph
    assert Counter(node.op_type for node in graph.node) == {"Transpose": 2, "LSTM": 1, "Squeeze": 1}
    (lstm,) = (node for node in graph.node if node.op_type == "LSTM")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    w, r, b = (held.pop(name) for name in lstm.input[1:4])
    gates = np.array([0, 0, 3, 3, 1, 1, 2, 2], np.float32)
    np.testing.assert_array_equal(w, np.broadcast_to(gates[:, None], (1, 8, 3)))
    np.testing.assert_array_equal(r, np.broadcast_to(gates[:, None], (1, 8, 2)))
    np.testing.assert_array_equal(b, [[*gates, *gates]])
    assert len(lstm.input) == 4  # no state of zeros is computed
    assert {array.dtype.kind for array in held.values()} <= {"i"}  # torch's own order is not shipped beside it
    shape = graph.output[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", "length", 2]


def test_a_large_layers_weights_are_folded_too(tmp_path: Path) -> None:
    """The exporter's optimizer folds only small constants: these are 4.2 million numbers."""
    module = nn.LSTM(512, 1024)
    example = {"input": np.zeros((3, 2, 512), np.float32)}
    model = export_model(
        module, name="lstm", example=example, inputs={"input": Input(dims=(Dim("length", 1, 3, 9), "batch"))}
    )
    proto = onnx.load(export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "m.onnx"))
    assert {node.op_type for node in proto.graph.node} == {"LSTM", "Squeeze"}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert proto.ByteSize() == pytest.approx(4 * parameters, rel=0.001)


def test_two_builds_have_one_digest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(Reader())
    for name in CPUS:
        first, second = (export(model, targets()[name], tmp_path / f"{name}-{copy}") for copy in "ab")
        assert first.digest == second.digest


@pytest.mark.parametrize("name", CPUS)
def test_a_quantized_layer_runs_in_int8_and_at_every_size(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = make(Reader())
    data = open_set([{"tokens": np.random.default_rng(0).integers(0, 20, (64, 8))}], model.inputs, name="noise")
    quantized = quantize(model, data, scheme="x86-vnni").model
    converted = convert(quantized)
    engine = export(quantized, targets()[name], tmp_path / "engine")
    runner = open_engine(engine, threads=1)
    try:
        for batch, length in SIZES:
            feed = sized(model, batch, length)
            expected = run_program(converted, feed)["output"]
            # the state has steps of 1/127, the weights theirs: the program has neither
            np.testing.assert_allclose(runner.run(feed)["output"], expected, atol=0.05 * np.abs(expected).max())
        layers = runner.layers()
    finally:
        runner.close()
    recurrent = [layer for layer in layers if layer.type in ("DynamicQuantizeLSTM", "LSTM", "RNNSeq")]
    assert recurrent
    assert {layer.precision for layer in recurrent} == {"int8"}
    assert all(node.startswith("text::") for layer in recurrent for node in layer.nodes)
    assert sum(layer.precision == "int8" for layer in layers if layer.type in ("QGemm", "FullyConnected")) == 2


@pytest.fixture(scope="session")
def _rtx() -> None:
    try:
        ensure_rtx_libraries()
    except CompressError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("_rtx")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_for_rtx_builds_it_with_a_profile(tmp_path: Path, kind: type[nn.RNNBase], precision: Any) -> None:
    torch.manual_seed(0)
    model = make(Sequence(kind, TWICE), 2 if kind is nn.LSTM else 1)
    engine = export(model, targets()["rtx"], tmp_path / "engine", precision=precision)
    assert engine.state == "built, not run"
    assert engine.inputs[0].describe().startswith("int64[batch=1..8, length=1..32]")
