"""Residual blocks: what lies between a value and the sum it is added to again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from compress.model import Model
from compress.quantize.blocks import residual_blocks
from tests.compress.quantize.recovered import model_of


class Residual(nn.Module):
    """A layer, two residual blocks, one of them with a part that a cache outside of it gets, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.one, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.stem(x)
        kept = self.one(seen)
        seen = torch.tanh(kept) + seen
        seen = seen + self.down(torch.relu(self.up(seen) + 1))
        return {"output": self.head(seen), "kept": kept * 2}


def nodes(model: Model) -> GraphModule:
    return model.graph.program.module(check_guards=False)


def test_the_blocks_of_a_program_in_order() -> None:
    module = nodes(model_of(Residual(), 4))
    layers = [node.name for node in module.graph.nodes if "linear" in node.name]
    found = residual_blocks(list(module.graph.nodes), layers)
    assert [[node.name for node in block] for block in found] == [
        ["linear_1", "tanh", "add"], ["linear_2", "add_1", "relu", "linear_3", "add_2"],
    ]  # fmt: skip
    assert residual_blocks(list(module.graph.nodes), layers[:1]) == []     # without layers there is nothing to learn


def test_of_blocks_within_blocks_the_inner_ones_are_taken() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.outer(x)
            return x + (seen + self.inner(seen))

    module = nodes(model_of(Nested(), 4))
    (block,) = residual_blocks(list(module.graph.nodes), ["linear", "linear_1"])
    assert [node.name for node in block] == ["linear_1", "add"]


def test_sums_that_are_no_residuals() -> None:
    def twice(x: Tensor, y: Tensor) -> Tensor:
        return (x + y) + (x + x)

    assert residual_blocks(list(symbolic_trace(twice).graph.nodes), ["add"]) == []
