"""GPTQ: round a layer's weights one input after the other; what each rounding errs, the inputs that follow make good.

Source: Frantar et al. 2023, arXiv:2210.17323, section 3; the least relevant inputs last, as in its released code
(``act_order``), which first fixes the steps of all groups (``static_groups``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor

from compress.model import Model
from compress.quantize.grid import WeightGrid
from compress.quantize.lockstep import Layer, Lockstep, Part
from compress.weights import with_weights
from runtimes.spec import Feed

DAMPING = 0.01          # of the mean of the moments' diagonal, added to it
COLUMNS = 128           # that are rounded before the rest is told


def gptq(weight: Tensor, moments: Tensor, grid: WeightGrid) -> Tensor:
    """``weight`` rounded to ``grid``, so that products with inputs of ``moments`` change little.

    Args:
        weight: ``(outputs, inputs)``.
        moments: sum of ``x x.T`` over the inputs ``x``, ``(inputs, inputs)``; an input that was always 0 is rounded to
            nearest.
        grid: with groups that divide the inputs.

    Returns:
        Weights on the grid that min-max finds from them again. An output errs by no more, over these inputs, than it
        does rounded to nearest.

    Raises:
        ValueError: if the groups do not divide the number of inputs.
    """
    inputs = weight.shape[1]
    if grid.group is not None and inputs % grid.group:
        raise ValueError(f"groups of {grid.group} do not divide {inputs} inputs")
    rows = grid.rows(weight)
    step, zero = (value.expand(rows.shape).reshape(weight.shape) for value in grid.parameters(rows))
    fixed, plain = (value.reshape(weight.shape) for value in (grid.ends(rows), grid.nearest(rows)))
    plain = torch.where(fixed.isnan(), plain, fixed)
    integers = _rounded(weight, moments, step, zero, fixed, grid)
    worse = _error(weight - (integers - zero) * step, moments) > _error(weight - (plain - zero) * step, moments)
    integers[worse] = plain[worse]
    return grid.on_grid(integers.reshape(rows.shape), weight)


def _rounded(weight: Tensor, moments: Tensor, step: Tensor, zero: Tensor, fixed: Tensor, grid: WeightGrid) -> Tensor:
    """The integers; ``fixed`` are those that are given, NaN where one is to be found."""
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    left, step, zero, fixed = weight.double()[:, order], step[:, order], zero[:, order], fixed[:, order]
    factor = _factor(moments.double()[order][:, order])
    integers = torch.zeros_like(left)
    for start in range(0, left.shape[1], COLUMNS):
        end = min(start + COLUMNS, left.shape[1])
        errors = torch.zeros_like(left[:, start:end])
        for i in range(start, end):
            found = ((left[:, i] / step[:, i]).round() + zero[:, i]).clamp(grid.low, grid.high)
            integers[:, i] = torch.where(fixed[:, i].isnan(), found, fixed[:, i])
            errors[:, i - start] = (left[:, i] - (integers[:, i] - zero[:, i]) * step[:, i]) / factor[i, i]
            left[:, i + 1 : end] -= errors[:, i - start, None] * factor[i, i + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return integers[:, torch.argsort(order)].to(weight.dtype)


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments."""
    diagonal = moments.diagonal()
    silent = diagonal == 0
    damping = DAMPING * diagonal.mean()
    damped = moments + torch.diag(torch.where(silent, 1.0, damping))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _error(difference: Tensor, moments: Tensor) -> Tensor:
    """The squared error of each output, ``(outputs,)``."""
    difference = difference.double()
    return ((difference @ moments.double()) * difference).sum(1)


def round_with_gptq(model: Model, feeds: Mapping[str, Sequence[Feed]]) -> tuple[Model, int]:
    """``model`` with the weights of its int8 layers on their grids, and how many layers they are.

    Inputs are what the layers before give in int8, already rounded this way. A weight that several operators read
    stays as it is, and is rounded to nearest.

    Args:
        model: a quantized one.
        feeds: graph -> what it is run on.
    """
    rounded: dict[str, Tensor] = {}
    for graph, own in feeds.items():
        lockstep = Lockstep(model, graph, own)
        for part in lockstep.parts():
            layer = lockstep.layers.get(part.nodes[-1].name)
            if layer is None:
                continue
            weight = model.weights[layer.weight].detach()
            moments = layer_moments(layer, weight, part)
            groups = weight.flatten(1).chunk(len(moments))
            found = [gptq(rows, own, layer.grid) for rows, own in zip(groups, moments, strict=True)]
            lockstep.values[layer.fake] = rounded[layer.weight] = torch.cat(found).reshape(weight.shape)
    return with_weights(model, rounded), len(rounded)


def layer_moments(layer: Layer, weight: Tensor, part: Part) -> Tensor:
    """Sum of ``x x.T`` over what each group of ``layer`` multiplies, f64 ``(groups, inputs, inputs)``."""
    groups, inputs = _groups(layer), weight[0].numel()
    total = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
    with torch.no_grad():
        for given in part.given:
            rows = _rows(layer, weight, given[layer.activation])
            total += torch.einsum("gri,grj->gij", rows, rows)
    return total


def _rows(layer: Layer, weight: Tensor, value: Tensor) -> Tensor:
    """What the weights are multiplied with, ``(groups, positions, inputs)``; of a convolution each place's window."""
    if layer.axis == -1:
        return value.reshape(1, -1, value.shape[-1])
    spatial = -layer.axis - 1
    stride, padding, dilation = (_pair(layer, place, default) for place, default in ((3, 1), (4, 0), (5, 1)))
    kernel = tuple(weight.shape[2:])
    if spatial == 1:
        value = value.unsqueeze(-2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    windows: Tensor = F.unfold(value, kernel, dilation, padding, stride)        # batch, channels * kernel, positions
    groups = _groups(layer)
    return windows.reshape(len(windows), groups, -1, windows.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)


def _pair(layer: Layer, place: int, default: int) -> tuple[int, ...]:
    spatial = -layer.axis - 1
    given = layer.node.args[place] if len(layer.node.args) > place else [default]
    return tuple(given) * spatial if len(given) == 1 else tuple(given)  # type: ignore[arg-type]


def _groups(layer: Layer) -> int:
    return int(layer.node.args[6]) if len(layer.node.args) > 6 else 1  # type: ignore[arg-type]
