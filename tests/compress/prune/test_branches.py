"""Residual branches in exported programs, and programs without them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from compress.errors import CompressError
from compress.model import Graph
from compress.prune.absent import take_out
from compress.prune.branches import Residuals, without
from compress.prune.check import prove
from compress.prune.groups import Group
from compress.saving import export_model

LINEAR, NORM = "aten.linear.default", "aten.layer_norm.default"


class PostNorm(nn.Module):
    """As in BERT: the norm is behind the sum; the branch is a feed-forward with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.dropout(self.down(functional.gelu(self.up(x)))) + x))


class Scaled(nn.Module):
    """As in ConvNeXt: a factor for each channel before the sum, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gamma = nn.LayerNorm(8), nn.Linear(8, 8), nn.Parameter(torch.full((8,), 0.1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + functional.relu(self.up(self.norm(x))) * self.gamma)


class Convolved(nn.Module):
    """As in ResNet: two convolutions, each with a batch norm that has a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.normal_(self.norm2.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(self.norm1(self.one(x)).relu()))
        y += x                                   # in place
        return self.head(y.relu().mean((2, 3)))


class MultiHead(nn.Module):
    """torch's own attention, which gives its weights as well."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x, x, x)[0])


class Twice(nn.Module):
    """One layer makes two branches; both of them go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.down(self.up(x).relu())
        return self.head(x)


class Parallel(nn.Module):
    """As in GPT-J: two results, added up before they are added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head(x + (self.a(y) + self.b(y)))


def program_of(module: nn.Module, **feed: Tensor) -> dict[str, ExportedProgram]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes? ")     # of a recurrent layer
        return {"forward": torch.export.export(module.eval(), (), feed)}


def operators(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("make", "shape", "last", "ops"), [
    (PostNorm, (2, 5, 8), "down", [NORM, LINEAR]), (Scaled, (2, 5, 8), "up", [LINEAR]),
    (Convolved, (2, 4, 6, 6), "norm2", ["aten.relu.default", "aten.mean.dim", LINEAR]),
    (MultiHead, (2, 5, 8), "attention", [LINEAR]), (Twice, (2, 5, 8), "down", [LINEAR]),
    (Parallel, (2, 5, 8), "a+b", [LINEAR]),
])
def test_every_form_of_a_branch(
    calls: dict[str, Graph], make: Callable[[], nn.Module], shape: tuple[int, ...], last: str, ops: list[str],
) -> None:
    module, x = make().eval(), torch.randn(shape)
    (branch,), skipped = Residuals(module, program_of(module, x=x)).branches()
    assert (branch.name, skipped) == (last, {})
    left = {f"{layer}.{name}" for layer in ("head", *(["norm"] if NORM in ops else [])) for name in ("weight", "bias")}
    assert set(branch.tensors) == module.state_dict().keys() - left
    group = Group(name=branch.name, kind="blocks", units=1, edits=(), branch=branch)
    before = module(x)
    assert prove(module, {0: (group, (0,))}, calls, {"forward": [{"x": x}]}) < 1e-6
    assert torch.equal(module(x), before)                    # which leaves it as it was
    take_out(module, branch.tensors)
    model = export_model(module, name="left", example={"x": x})
    assert set(model.weights) == left == module.state_dict().keys()
    assert operators(model.graph.program) == ops
    np.testing.assert_allclose(model.graph.program.module()(x=x)[0].detach(), module(x).detach(), rtol=1e-6)


def test_what_each_branch_of_a_transformer_has(networks: ModuleType) -> None:
    tower = networks.Tower()
    branches, _ = Residuals(tower, program_of(tower, x=torch.zeros(2, 5, dtype=torch.long))).branches()
    assert [branch.name for branch in branches] == [f"blocks.{n}.{last}" for n in (0, 1)
                                                    for last in ("attention.out", "down")]
    ff = branches[1]
    assert set(ff.tensors) == {f"blocks.0.{layer}.{name}" for layer in ("norm2", "up", "down")
                               for name in ("weight", "bias")}
    assert {"blocks.0.up", "blocks.0.down", "blocks.0.norm2"} == set(ff.modules)
    assert {"blocks.0.attention", "blocks.0.attention.q", "blocks.0.norm1"} < set(branches[0].modules)


def test_a_program_without_a_branch_is_that_of_a_network_that_never_had_it(networks: ModuleType) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(32), networks.Attention()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(self.norm1(x))

    block, x = networks.Block(), torch.randn(2, 5, 32)
    branches, _ = Residuals(block, program_of(block, x=x)).branches()
    take_out(block, branches[1].tensors)
    left = without(program_of(block, x=x)["forward"], frozenset(branches[1].tensors))
    whole = program_of(Half(), x=x)["forward"]
    assert operators(left) == operators(whole)
    assert list(left.state_dict) == list(whole.state_dict)
    torch.testing.assert_close(left.module()(x=x), block(x))


class Odd(nn.Module):
    """Sums that are no residual branches, one for each name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.head = kind, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.rnn = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.kind == "both":                              # neither is made of the other
            return self.head(self.a(x) + self.b(z))
        if self.kind == "shape":                             # one is repeated to be added
            return self.head(x + self.a(x[:, :1])) + z.sum()
        if self.kind == "sigmoid":                           # which is not 0 where its layer gives 0
            return self.head(x + self.a(x).sigmoid()) + z.sum()
        if self.kind == "read":
            y = self.a(x)
            return self.head(x + y), y + z
        if self.kind == "input":
            return self.head(x + self.a(self.b(z) * x))
        return self.head(x + self.a(self.rnn(x)[0])) + z.sum()


@pytest.mark.parametrize(("kind", "reason"), [
    ("both", None), ("shape", None), ("sigmoid", None),
    ("read", "its result is read elsewhere too"), ("input", "nothing else reads input 'z'"),
    ("rnn", "it holds a recurrent layer, 'rnn'"),
])
def test_sums_that_are_no_branches(kind: str, reason: str | None) -> None:
    module, x, z = Odd(kind), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    branches, skipped = Residuals(module, program_of(module, x=x, z=z)).branches()
    assert branches == []
    if reason is None:
        assert skipped == {}
    else:
        assert reason in skipped["a"]


class Crossed(nn.Module):
    """Two branches read a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = x + self.a(x * z)
        return self.head(x + self.b(x * z))


def test_branches_that_may_not_go_together() -> None:
    module, x, z = Crossed(), torch.randn(2, 8), torch.randn(2, 8)
    residuals = Residuals(module, program_of(module, x=x, z=z))
    assert [branch.name for branch in residuals.branches()[0]] == ["a", "b"]
    assert residuals.unread([["a"]]) == []
    assert residuals.unread([["a"], ["b"]]) == ["z"]
    assert residuals.unused(["a", "b"]) == ("a.weight", "a.bias", "b.weight", "b.bias")
    take_out(module, residuals.unused(["a", "b"]))
    with pytest.raises(CompressError, match="nothing reads input 'z' without the branches that were removed"):
        without(program_of(module, x=x, z=z)["forward"], frozenset({"a.weight", "a.bias", "b.weight", "b.bias"}))


def test_a_program_that_computes_something_else_is_not_written() -> None:
    module, x = PostNorm().eval(), torch.randn(2, 5, 8)
    take_out(module, ["up.weight", "up.bias", "down.weight", "down.bias"])
    module.down._buffers["bias"] = torch.randn(8)            # not the zeros it should be
    with pytest.raises(CompressError, match="output 'output' is another once the branches that were removed are left"):
        export_model(module, name="wrong", example={"x": x})
