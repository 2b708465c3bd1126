"""Weights in groups: a fake quantizer that trains, and the operator that a converted program computes them with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase

from compress.quantize.grid import WeightGrid


class GroupFakeQuantize(FakeQuantizeBase):  # type: ignore[misc]
    """A weight ``(outputs, inputs)`` on the grid of its groups, which follows the weight; its gradient passes."""

    def __init__(self, grid: WeightGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if not self.fake_quant_enabled[0]:
            return x
        with torch.no_grad():
            rows = self.grid.rows(x)
            step, zero = self.grid.parameters(rows)
            rounded = ((self.grid.nearest(rows) - zero) * step).reshape(x.shape)
        return rounded + (x - x.detach())

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Nothing is kept: steps and zero points are those of the weight at hand."""
        raise NotImplementedError("ask WeightGrid.parameters with the weight")


def grid_of(quantizer: nn.Module) -> WeightGrid | None:
    """The grid of a weight's fake quantizer; None of another module, an activation's fake quantizer among them."""
    if isinstance(quantizer, GroupFakeQuantize):
        return quantizer.grid
    if isinstance(quantizer, FakeQuantizeBase) and quantizer.qscheme == torch.per_channel_symmetric:
        return WeightGrid(low=-int(quantizer.quant_max), high=int(quantizer.quant_max))
    return None


def put_groups(module: GraphModule, grids: Mapping[str, WeightGrid]) -> None:
    """Put a fake quantizer before the weight of each operator that ``grids`` names, in the prepared ``module``."""
    for node in list(module.graph.nodes):
        if node.name in grids:
            name = f"_groups_of_{node.name}"
            module.add_submodule(name, GroupFakeQuantize(grids[node.name]))
            with module.graph.inserting_before(node):
                quantizer = module.graph.call_module(name, (node.args[1],))
            node.update_arg(1, quantizer)
    module.recompile()


def fix_groups(module: GraphModule) -> None:
    """Put integers, steps and zero points in the place of each fake quantizer of groups and its weight."""
    for node in list(module.graph.nodes):
        quantizer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(quantizer, GroupFakeQuantize):
            held = _held(quantizer.grid, _parameter(module, node.args[0]))
            with module.graph.inserting_before(node):
                arguments = [None if value is None else _constant(module, f"{node.target}_{part}", value)
                             for part, value in held.items()]  # fmt: skip
                fixed = module.graph.call_function(dequantize_groups._opoverload, (*arguments, quantizer.grid.group))
            fixed.meta = dict(node.meta)
            node.replace_all_uses_with(fixed)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _held(grid: WeightGrid, weight: Tensor) -> dict[str, Tensor | None]:
    rows, outputs = grid.rows(weight), len(weight)
    step, zero = (value.reshape(outputs, -1) for value in grid.parameters(rows))
    return {"integers": grid.nearest(rows).reshape(weight.shape).to(torch.int8), "steps": step,
            "zeros": None if grid.symmetric else zero.to(torch.int8)}  # fmt: skip


def _constant(module: GraphModule, name: str, value: Tensor) -> Node:
    module.register_buffer(name, value)
    return module.graph.get_attr(name)


def _parameter(module: GraphModule, node: Node) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value.detach()


@torch.library.custom_op("compress::dequantize_groups", mutates_args=())
def dequantize_groups(integers: Tensor, steps: Tensor, zeros: Tensor | None, group: int) -> Tensor:
    """The float weight ``(outputs, inputs)`` of int8 ``integers`` in that shape.

    Args:
        integers: of four bits, or fewer than eight.
        steps: ``(outputs, inputs / group)``.
        zeros: int8 zero points in the shape of ``steps``; 0 where there are none.
        group: neighbouring inputs that share a step.
    """
    whole = integers.reshape(len(integers), -1, group).to(steps.dtype)
    if zeros is not None:
        whole = whole - zeros.unsqueeze(2).to(steps.dtype)
    weight: Tensor = whole * steps.unsqueeze(2)
    return weight.flatten(1)


@dequantize_groups.register_fake
def _(integers: Tensor, steps: Tensor, zeros: Tensor | None, group: int) -> Tensor:
    return torch.empty(integers.shape, dtype=steps.dtype)
