"""Layers in other words: the same function, and listed and quantized as the layers they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.program import run_program
from compress.quantize import quantize
from compress.quantize.annotate import find_operators
from compress.quantize.fold import fold
from compress.quantize.prepare import convert
from compress.saving import export_model


class Written(nn.Module):
    """``x`` times a weight, as ``how`` writes it."""

    def __init__(self, how: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.weight, self.bias = how, nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.register_buffer("frequencies", torch.randn(8, 6))
        self.layer = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


LINEAR: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "matmul": lambda net, x: x @ net.weight,
    "transposed": lambda net, x: x @ net.layer.weight.T + net.layer.bias,
    "swapped": lambda net, x: x @ net.layer.weight.transpose(-1, 0),
    "mm": lambda net, x: torch.mm(x[:, 0], net.weight),
    "addmm": lambda net, x: torch.addmm(net.bias, x[:, 1], net.weight),
    "softmax": lambda net, x: (x @ net.weight).softmax(-1),
}
LISTED: dict[str, tuple[str, str, Callable[[Written, Tensor], Tensor]]] = {
    "left": ("matmul", "this release has no int8 form of it", lambda net, x: net.weight.T @ x.mT),
    "buffer": ("matmul", "this release has no int8 form of it", lambda net, x: x @ net.frequencies),
    "scaled": ("addmm", "this release has no int8 form of it",
               lambda net, x: torch.addmm(net.bias, x[:, 1], net.weight, beta=2)),
    "no bias": ("addmm", "this release has no int8 form of it",
                lambda net, x: torch.addmm(x[:, 0, :6], x[:, 1], net.weight)),
    "vector": ("matmul", "this release has no int8 form of it", lambda net, x: x @ net.weight[:, 0]),
    "einsum": ("einsum", "this release has no int8 form of it",
               lambda net, x: torch.einsum("bti,io->bto", x, net.weight)),
    "activations": ("bmm", "it multiplies two activations, and only weights are quantized",
                    lambda net, x: torch.bmm(x, x.mT)),
    "dropped": ("scaled_dot_product_attention", "it drops shares at random, as in training",
                lambda net, x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)),
}  # fmt: skip


def noise(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("how", LINEAR)
def test_a_product_with_a_weight_is_a_linear_layer(how: str) -> None:
    feed = noise(16, 3, 8)
    model = export_model(Written(LINEAR[how]).eval(), name="written", example=feed)
    folded = fold(model)
    for one in (model, folded):     # inspect looks at the first
        assert [(o.op, o.float_reason) for o in find_operators(one.graph.program.module(check_guards=False))] == [
            ("linear", None)
        ]  # fmt: skip
    np.testing.assert_allclose(run_program(folded, feed)["output"], run_program(model, feed)["output"], atol=1e-5)
    assert fold(folded) is folded
    int8 = convert(quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni").model)
    assert [name for name, value in int8.weights.items() if value.dtype is torch.int8 and value.ndim == 2]
    expected = run_program(model, feed)["output"]
    np.testing.assert_allclose(run_program(int8, feed)["output"], expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("how", LISTED)
def test_a_product_that_is_none_is_listed_with_the_reason(how: str) -> None:
    op, reason, written = LISTED[how]
    model = export_model(Written(written).eval(), name="written", example=noise(2, 3, 8))
    found = find_operators(model.graph.program.module(check_guards=False))
    assert [(o.op, o.float_reason) for o in found] == [(op, reason)]
    assert fold(model) is model


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("conv", [
    nn.Conv1d(3, 4, 3, padding="same"), nn.Conv1d(3, 4, 4, padding="same", bias=False),
    nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)), nn.Conv2d(3, 6, (4, 3), padding="same", groups=3),
    nn.Conv2d(3, 4, 3, stride=2, padding="valid"),
])  # fmt: skip
def test_a_convolution_of_the_same_size_runs_in_int8(conv: nn.Conv1d | nn.Conv2d) -> None:
    feed = noise(4, 3, *[9] * (conv.weight.ndim - 2))
    norm = (nn.BatchNorm1d if conv.weight.ndim == 3 else nn.BatchNorm2d)(conv.out_channels)
    model = export_model(nn.Sequential(conv, norm).eval(), name="same", example={"input": feed["x"]})
    feed = {"input": feed["x"]}
    result = quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni")
    assert [(one["op"], one["precision"]) for one in result.operators] == [(f"conv{conv.weight.ndim - 2}d", "int8")]
    expected = run_program(model, feed)["output"]
    np.testing.assert_allclose(run_program(fold(model), feed)["output"], expected, atol=1e-5)
    np.testing.assert_allclose(run_program(convert(result.model), feed)["output"], expected,
                               atol=0.03 * np.abs(expected).max())
