"""A program from a graph module without a trace: its values, its dynamic sizes, and where each tensor is kept."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Input, Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.lifted import lifted
from compress.quantize.prepare import convert
from compress.saving import export_model
from runtimes.spec import Dim
from tests.compress.quantize.recovered import data_of, noise


class Kept(nn.Module):
    """A parameter, a buffer of each kind and a constant; a tensor that is cut to a dynamic size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.register_buffer("place", torch.arange(48.0).reshape(8, 6) / 48)
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.layer(x) * self.scale + self.place[: x.shape[1]]
        return self.layer(turned[..., :4]).transpose(1, 2) + torch.tensor([0.5])


def model() -> Model:
    torch.manual_seed(0)
    return export_model(Kept().eval(), name="kept", example={"x": noise(2, 3, 4)},
                        inputs={"x": Input(dims=("batch", Dim("length", 1, 3, 8)))})  # fmt: skip


def test_it_computes_the_same_at_other_sizes_and_keeps_every_tensor_where_it_was() -> None:
    (graph,) = model().graphs.values()
    made = lifted(graph.program.module(check_guards=False), graph.program)
    x = torch.from_numpy(noise(5, 7, 4))
    (value,), (wanted,) = (program.module()(x=x) for program in (made, graph.program))
    np.testing.assert_array_equal(value.detach(), wanted.detach())
    kinds, before = ({spec.target: (spec.kind, spec.persistent) for spec in program.graph_signature.input_specs}
                     for program in (made, graph.program))  # fmt: skip
    assert kinds == before
    assert made.state_dict.keys() == graph.program.state_dict.keys()
    assert made.constants.keys() == graph.program.constants.keys()
    assert made.range_constraints == graph.program.range_constraints


def test_an_int8_program_is_not_traced() -> None:
    float_model = model()
    x = noise(64, 8, 4)
    quantized = quantize(float_model, data_of(float_model, x), scheme="x86-vnni", config=QuantizeConfig()).model
    with mock.patch.object(torch.export, "export", side_effect=AssertionError("traced")):
        converted = convert(quantized)
    names = [node.name for node in converted.graph.program.graph.nodes]
    assert names.count("quantize_per_tensor") == 1
    assert "dequantize_per_channel" in names
    longer = {"x": noise(3, 8, 4)}
    wanted = run_program(float_model, longer)["output"]
    np.testing.assert_allclose(run_program(converted, longer)["output"], wanted, atol=0.05 * np.abs(wanted).max())
