"""Which operators run in int8, and the reason why the others do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.model import Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.annotate import Operator, check_globs, find_operators, sources
from compress.quantize.prepare import convert
from compress.saving import export_model
from tests.compress.quantize.networks import Everything, Tied, TwoReaders, make


def operators(model: Model, keep_float: tuple[str, ...] = ()) -> list[Operator]:
    return find_operators(model.graph.program.module(check_guards=False), keep_float)


def test_every_operator_with_weights_in_the_order_they_run() -> None:
    found = operators(make(Everything))
    assert [(o.op, o.path) for o in found] == [
        ("conv2d", "stem"), ("conv1d", "along"), ("linear", "tokens"), ("linear", "plain"),
        ("linear", "head.0"), ("linear", "head.2"),
    ]  # fmt: skip
    assert all(o.float_reason is None for o in found)


def test_a_tensor_is_a_source_once_however_many_read_it() -> None:
    model = make(TwoReaders)
    module = model.graph.program.module(check_guards=False)
    found = find_operators(module)
    assert found[0].activation == found[1].activation == "x"
    assert [node.name for node in sources(module, found)] == ["x", "relu"]


def test_globs_keep_modules_float_and_are_named_as_the_reason() -> None:
    found = operators(make(Everything), ("st*", "head.?"))
    assert {o.path: o.float_reason for o in found if o.float_reason} == {
        "stem": "kept float by 'st*'", "head.0": "kept float by 'head.?'", "head.2": "kept float by 'head.?'",
    }  # fmt: skip


def test_a_look_up_and_a_weight_made_at_run_time_stay_float() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * x[0])

    (found,) = operators(export_model(Dynamic(), name="d", example={"x": np.zeros((2, 4), np.float32)}))
    assert found.float_reason == "its weight is computed at run time"
    table, words = operators(export_model(Tied(), name="t", example={"tokens": np.zeros((2, 3), np.int64)}))
    assert table.op == "embedding"
    assert "multiplies nothing" in str(table.float_reason)
    assert words.float_reason is None


@pytest.mark.parametrize("type", ["float64", "float16", "bfloat16"])
def test_a_layer_of_another_type_stays_float(type: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv1d(3, 4, 1).to(getattr(torch, type)), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x.to(getattr(torch, type))).float())

    model = export_model(Mixed(), name="mixed", example={"x": np.zeros((2, 3, 8), np.float32)})
    assert {o.path: o.float_reason for o in operators(model)} == {
        "conv": f"it computes in {type}, and int8 is made of float32: cast it to float32", "fc": None,
    }  # fmt: skip
    feed = {"x": np.random.default_rng(0).normal(size=(16, 3, 8)).astype(np.float32)}
    config = QuantizeConfig(smooth=0.5, equalize=True, rounding="gptq", correct_bias=True)
    quantized = quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni", config=config).model
    answers = run_program(convert(quantized), feed)["output"]
    np.testing.assert_allclose(answers, run_program(model, feed)["output"], atol=0.02)      # a step of 8 bits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


def test_a_recurrent_layer_is_listed_with_its_reason() -> None:
    model = export_model(Recurrent(), name="recurrent", example={"x": np.zeros((2, 3, 4), np.float32)})
    operators = find_operators(model.graph.program.module(check_guards=False))
    assert [(o.op, o.path, o.float_reason) for o in operators] == [
        ("gru", "rnn", "this release has no int8 form of it"), ("linear", "fc", None),
    ]  # fmt: skip


def test_a_glob_that_matches_nothing_is_refused() -> None:
    model = export_model(Recurrent(), name="recurrent", example={"x": np.zeros((2, 3, 4), np.float32)})
    with pytest.raises(CompressError, match=r"keep_float 'nosuch\*' matches no module with weights: they are rnn, fc"):
        check_globs(operators(model), "keep_float", ("fc", "nosuch*"))
