"""What the exporter need not trace once more: right all the same, and the program is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compress.export.decomposed import decomposed
from compress.export.onnx import write_onnx
from compress.model import Input
from compress.saving import export_model


class Of(nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


KNOWN = {
    "an activation": lambda x: torch.nn.functional.gelu(x) * 2,
    "a cast": lambda x: x.to(torch.int32).to(torch.float32) + x,
    "a cast and copy": lambda x: x.to(torch.int32, copy=True).to(torch.float32, non_blocking=True) + x,
    "a cast to a device": lambda x: x.to("cpu", torch.int32).to(device="cpu", dtype=torch.float32) + x.to("cpu"),
    "a cast to another's": lambda x: x.to(torch.ones(1, dtype=torch.int32)).to(x) + x,
    "a pool over all": lambda x: torch.nn.functional.adaptive_avg_pool2d(x.reshape(-1, 2, 1, 2), 1).flatten(1),
    "a pool over a line": lambda x: torch.nn.functional.adaptive_avg_pool1d(x.reshape(-1, 2, 2), 1).flatten(1),
    "a size": lambda x: x.reshape(x.shape[0], 2, -1).sum(-1),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(*[x[:, None, None]] * 3),
}
UNKNOWN = {
    "in place": lambda x: x.clone().mul_(3),
    "composed": lambda x: torch.nn.functional.silu(x, inplace=True),
    "uneven chunks": lambda x: torch.cat(x.chunk(3, -1)[::-1], -1),      # two of them
}


@pytest.mark.parametrize("function", KNOWN.values(), ids=KNOWN)
def test_known_operators_are_not_traced_again(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with mock.patch.object(ExportedProgram, "run_decompositions", side_effect=AssertionError("traced")):
        check(Of(function), tmp_path)


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_others_are_traced(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    traced = mock.patch.object(ExportedProgram, "run_decompositions", autospec=True,
                               side_effect=ExportedProgram.run_decompositions)  # fmt: skip
    with traced as seen:
        check(Of(function), tmp_path)
    assert seen.call_count == 1


def test_a_batch_normalisation_is_traced(tmp_path: Path) -> None:
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    norm[1].running_mean.fill_(0.5)  # type: ignore[union-attr, operator]
    check(Of(torch.relu, norm), tmp_path)


def check(network: nn.Module, folder: Path) -> None:
    """ONNX Runtime gives what torch does, at another batch too; the program reads as before."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((3, 6), np.float32)
    model = export_model(network.eval(), name="net", example={"x": x[:2]}, inputs={"x": Input(dims=("batch",))})
    before = str(model.graph.program.graph)
    file = write_onnx(model.graph, folder / "model.onnx")
    assert str(model.graph.program.graph) == before
    (found,) = onnxruntime.InferenceSession(file).run(None, {"x": x})
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


class Named(nn.Module):
    """Its input has the name of one of Python's functions."""

    def forward(self, input: Tensor) -> Tensor:
        return input * 2


def test_names_of_pythons_own(tmp_path: Path) -> None:
    model = export_model(Named(), name="net", example={"input": np.ones((2, 3), np.float32)}, inputs={})
    assert decomposed(model.graph.program) is not model.graph.program
    session = onnxruntime.InferenceSession(write_onnx(model.graph, tmp_path / "model.onnx"))
    np.testing.assert_array_equal(session.run(None, {"input": np.full((2, 3), 3, np.float32)})[0], 6)


def test_operators_of_our_own_count_as_translated() -> None:
    model = export_model(Of(torch.relu), name="net", example={"x": np.zeros((2, 6), np.float32)}, inputs={})
    program = model.graph.program
    node = next(node for node in program.graph.nodes if node.target is torch.ops.aten.relu.default)
    node.target = torch.ops.aten.special_bessel_j0.default      # the exporter has no translation of it
    assert decomposed(program).graph is program.graph           # to be traced
    assert decomposed(program, {torch.ops.aten.special_bessel_j0.default}).graph is not program.graph
