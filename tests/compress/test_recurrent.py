"""Recurrent layers kept whole: the operators against torch's own layers, and through tracing, files and stages."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import CalibrationSet, open_set
from compress.complexity import count
from compress.distill import DistillConfig, distill
from compress.errors import CompressError
from compress.inspection import inspect
from compress.loading import load
from compress.model import Input, Model
from compress.program import run_program
from compress.prune import PruneConfig, prune
from compress.quantize import quantize
from compress.quantize.prepare import convert
from compress.recurrent import OPERATORS, opaque
from compress.saving import export_model, save
from runtimes.spec import Dim, Feed

LAYERS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    *itertools.product(
        (nn.LSTM, nn.GRU, nn.RNN),
        (
            {}, {"batch_first": True}, {"bias": False, "num_layers": 2},
            {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
        ),
    ),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
]  # fmt: skip
LENGTH = Dim("length", 1, 8, 32)


class Reader(nn.Module):
    """An image and a question of any length; the question's last states and the image decide."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.table = nn.Embedding(20, 8)
        self.text = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = nn.Sequential(nn.Linear(28, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        _, state = self.text(self.table(question))
        h = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([self.image(image), h[-2], h[-1]], -1))


class Packed(nn.Module):
    """A padded batch, packed: by the lengths as a tensor, or as a list of numbers read from one."""

    def __init__(self, as_list: bool) -> None:
        super().__init__()
        self.as_list = as_list
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.tolist() if self.as_list else lengths, batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1][-1]


def make(kind: type[nn.RNNBase] = nn.LSTM, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return export_model(
        Reader(kind), name="reader", example=feed(2, 8),
        inputs={"question": Input(modality="text", dims=("batch", LENGTH))},
    )  # fmt: skip


def feed(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(batch, 12)).astype(np.float32), "question": rng.integers(0, 20, (batch, length))}


def samples(model: Model, number: int = 64) -> CalibrationSet:
    return open_set([feed(number, 8, 1)], model.inputs, name="noise")


def answers(module: nn.Module, given: Feed) -> np.ndarray:
    with torch.no_grad():
        result: Tensor = module.eval()(**{name: torch.from_numpy(value) for name, value in given.items()})
    return result.numpy()


def _results(layer: nn.RNNBase, x: Tensor, state: Any) -> list[Tensor]:
    """Outputs, final states and every gradient of a function of them all."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    given = [s.clone().requires_grad_() for s in state]
    first = None if not given else given[0] if len(given) == 1 else tuple(given)
    y, final = layer(x, first)
    final = final if isinstance(final, tuple) else (final,)
    (y.pow(2).sum() + sum((i + 2) * s.sin().sum() for i, s in enumerate(final))).backward()
    gradients = [value.grad for value in (x, *given, *layer.parameters())]
    return [y.detach(), *(s.detach() for s in final), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize(("kind", "settings"), LAYERS)
@pytest.mark.parametrize("initial", [False, True])
def test_an_operator_computes_and_differentiates_as_its_layer(
    kind: type[nn.RNNBase], settings: dict[str, Any], initial: bool
) -> None:
    torch.manual_seed(0)
    layer = kind(5, 4, **settings).eval()
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    for shape in ((3, 2, 5), (1, 1, 5), (7, 5)):  # the last has no batch axis
        batch = [] if len(shape) == 2 else [shape[0 if layer.batch_first else 1]]
        state = [torch.randn(states, *batch, 4) for _ in range(2 if kind is nn.LSTM else 1)] if initial else []
        x = torch.randn(shape)
        expected = _results(layer, x, state)
        with opaque(layer):
            found = _results(layer, x, state)
        assert len(found) == len(expected) >= 2 + 1 + 2 * layer.num_layers
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_torchs_own_checks_of_an_operator(name: str) -> None:
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}.get(name, nn.RNN)(5, 4, 2, bidirectional=True).double()
    weights = [getattr(layer, weight) for weight in layer._flat_weights_names]
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(4, 2, 4, dtype=torch.float64) for _ in range(2 if name == "lstm" else 1)]
    operator = getattr(torch.ops.compress, name).default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (x, state, weights, True, 2, True, False)
    passed = torch.library.opcheck(operator, arguments, test_utils=checks)
    assert set(passed.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weights": 3}, "4 weights expected, 3 given"), ({"state": 1}, "2 initial states expected, 1 given"),
        ({"layers": 0}, "0 weights expected, 4 given"), ({"axes": 2}, "an input of 3 axes and weights of 2 expected"),
        ({"flat": 1}, "an input of 3 axes and weights of 2 expected"), ({"double": 1}, "one type of real numbers"),
        ({"gates": 3}, r"weight 0 of shape \(16, 5\) expected, \(12, 5\) given"),
        ({"features": 6}, r"weight 0 of shape \(16, 6\) expected, \(16, 5\) given"),
        ({"hidden": 0}, r"weight 0 of shape \(0, 5\) expected, \(0, 5\) given; none may be empty"),
        ({"state": 2, "rows": 3}, r"a state of 1 x batch x 4 expected, \(3, 2, 4\) given"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "meta"])  # on meta only the shapes are computed
def test_arguments_that_do_not_fit_are_refused(change: dict[str, int], problem: str, device: str) -> None:
    gates, hidden = change.get("gates", 4), change.get("hidden", 4)
    shapes = [(gates * hidden, 5), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)]
    weights = [torch.zeros(shape, device=device) for shape in shapes][: change.get("weights", 4)]
    if "flat" in change:
        weights[1] = weights[1].flatten()
    if "double" in change:
        weights[3] = weights[3].double()
    x = torch.zeros((3, 2, change.get("features", 5))[: change.get("axes", 3)], device=device)
    state = [torch.zeros(change.get("rows", 1), 2, 4, device=device)] * change.get("state", 0)
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.compress.lstm.default(x, state, weights, True, change.get("layers", 1), False, False)


def test_the_users_module_is_left_as_found() -> None:
    module = Reader()
    before = copy.deepcopy(module)
    export_model(module, name="reader", example=feed(2, 8))
    assert vars(module.text).keys() == vars(before.text).keys()
    assert {name: type(m) for name, m in module.named_modules()} == {n: type(m) for n, m in before.named_modules()}
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))
    with opaque(module.eval()):
        assert "forward" in vars(module.text)
    assert "forward" not in vars(module.text)


def test_it_is_left_as_found_after_a_failure_too() -> None:
    module = Packed(as_list=False)
    example = {"x": np.ones((2, 5, 3), np.float32), "lengths": np.array([5, 3])}
    with pytest.raises(CompressError, match="packed sequence"):
        export_model(module, name="packed", example=example)
    assert "forward" not in vars(module.rnn)


def test_layers_that_the_operators_do_not_compute_stay_as_they_are() -> None:
    class Louder(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(2 * input, hx)

    layers = nn.ModuleDict({
        "projected": nn.LSTM(4, 6, proj_size=3), "own": Louder(4, 4), "drops": nn.LSTM(4, 4, 2, dropout=0.5),
        "plain": nn.LSTM(4, 4, 2),
    })  # fmt: skip
    with opaque(layers):
        assert [name for name, layer in layers.items() if "forward" in vars(layer)] == ["plain"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_saved_model_takes_every_length_and_batch(tmp_path: Path, kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = Reader(kind)
    question = Input(modality="text", dims=("batch", LENGTH))
    save(module, tmp_path / "model.pt", example=feed(2, 8), inputs={"question": question})
    model = load(tmp_path / "model.pt")
    for given in (feed(1, 1), feed(3, 5), feed(64, 32)):
        np.testing.assert_allclose(run_program(model, given)["output"], answers(module, given), atol=1e-6)


def test_a_lone_layer_is_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.GRU(3, 4, batch_first=True)
    x = np.ones((2, 5, 3), np.float32)
    model = save(module, tmp_path / "m.pt", example={"input": x}, inputs={"input": Input(dims=("batch", LENGTH))})
    long = np.ones((1, 30, 3), np.float32)
    found = run_program(load(tmp_path / "m.pt"), {"input": long})
    np.testing.assert_allclose(found["output_0"], module(torch.from_numpy(long))[0].detach(), atol=1e-6)
    assert [node.target for node in model.graph.program.graph.nodes if "gru" in str(node.target)] == [
        torch.ops.compress.gru.default
    ]


def test_a_process_that_never_traced_reads_the_file(tmp_path: Path) -> None:
    save(Reader(), tmp_path / "model.pt", example=feed(2, 8))
    done = subprocess.run(
        [sys.executable, "-c", f"from compress.loading import load; print(load({str(tmp_path / 'model.pt')!r}).name)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "Reader"


@pytest.mark.parametrize("as_list", [False, True])
def test_a_packed_sequence_is_refused_with_what_to_do_instead(as_list: bool) -> None:
    example = {"x": np.ones((2, 5, 3), np.float32), "lengths": np.array([5, 3])}
    with pytest.raises(CompressError, match=r"packed sequence has shapes that depend.*torch\.gather at length - 1"):
        export_model(Packed(as_list), name="packed", example=example, inputs={"x": Input(dims=("batch", LENGTH))})


def test_what_is_said_of_padding_is_right() -> None:
    """The outputs of a padded batch, read at each last step, are the packed one's final state."""
    torch.manual_seed(0)
    module = Packed(as_list=False).eval()
    x, lengths = torch.randn(3, 6, 3), torch.tensor([6, 2, 4])
    y, _ = module.rnn(x)
    last = y.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, 4))[:, 0]
    torch.testing.assert_close(last, module(x, lengths))


def test_macs_are_counted_at_the_length_asked_for() -> None:
    model = make()
    # a step: 2 directions x 4 gates x 6 hidden x ((8 inputs + 6 hidden) + (12 + 6) in the second layer)
    step = 2 * 4 * 6 * ((8 + 6) + (12 + 6))
    for length in (1, 8, 32):
        operations = count(model.graph.program, model, {"length": length}).operations
        assert [(o.module, o.macs) for o in operations if "lstm" in o.op] == [("text", length * step)]


def test_inspect_says_what_stays_float_and_what_may_shrink() -> None:
    found = inspect(make())
    assert [(o["path"], o["reason"]) for o in found.operators if o["op"] == "lstm"] == [("text", None)]
    (gru,) = [o for o in inspect(make(nn.GRU)).operators if o["op"] == "gru"]
    assert gru["reason"] == "this release has no int8 form of it"
    assert found.facts["components"]["text"]["macs"] == 8 * 1536
    assert found.prunable["text"] == "6 hidden units"


def test_prune_leaves_the_layer_whole_and_the_length_dynamic() -> None:
    model = make()
    result = prune(model, samples(model), PruneConfig(macs=0.95, importance="magnitude"))
    assert result.removed
    assert not [path for path in result.removed if path.startswith("text")]
    assert result.gave_nothing == ("table", "text")
    assert {k: v.shape for k, v in result.model.weights.items() if k.startswith("text")} == {
        k: v.shape for k, v in model.weights.items() if k.startswith("text")
    }
    assert run_program(result.model, feed(3, 17))["output"].shape == (3, 4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_quantized_it_takes_every_length(kind: type[nn.RNNBase]) -> None:
    model = make(kind)
    result = quantize(model, samples(model), scheme="x86-vnni")
    assert [(o["path"], o["precision"]) for o in result.operators if o["op"] != "embedding"] == [
        ("text", "int8" if kind is nn.LSTM else "float"), ("image.0", "int8"), ("image.2", "int8"), ("head.0", "int8"),
        ("head.2", "int8"),
    ]  # fmt: skip
    converted = convert(result.model)
    for given in (feed(1, 1), feed(3, 5), feed(64, 32)):
        expected = run_program(model, given)["output"]
        found = run_program(converted, given)["output"]
        np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


@pytest.mark.parametrize("quantized", [False, True])
def test_distillation_trains_the_layer_through_the_program(quantized: bool) -> None:
    teacher, student = make(), make(seed=1)
    if quantized:
        student = quantize(student, samples(student), scheme="x86-vnni").model
    config = DistillConfig(epochs=6, batch_size=16, learning_rate=1e-2, loss="mse")
    result = distill(student, teacher, samples(student), config=config)
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.6 * losses[0]
    for name, before in student.weights.items():
        if name.startswith("text."):
            assert (result.model.weights[name] - before).abs().max() > 1e-3, name


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_torch_alone_fixes_the_length() -> None:
    """Why this file is there: should torch learn it, this test says so."""
    length = torch.export.Dim("length", min=1, max=32)
    layer, x = nn.GRU(3, 4), torch.zeros(6, 2, 3)
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        torch.export.export(layer, (x,), dynamic_shapes=({0: length},))
