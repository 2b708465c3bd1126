"""What residual branches are worth: the outputs without them, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.model import Graph
from compress.prune.branches import Residuals
from compress.prune.bypass import bypassed
from compress.prune.groups import Group, find_channel_groups
from compress.prune.importance import rank

CALLS = {"forward": Graph()}


class Adds(nn.Module):
    """A stream to which two layers add."""

    def __init__(self, first: float, second: float, bias: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(first * torch.eye(2))
            self.second.weight.copy_(second * torch.eye(2))
            self.first.bias.zero_()
            self.second.bias.copy_(torch.tensor(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(x)


def branches(module: nn.Module, x: torch.Tensor) -> list[Group]:
    program = torch.export.export(module, (), {"x": x})
    found, _ = Residuals(module, {"forward": program}).branches()
    return [Group(name=one.name, kind="blocks", units=1, edits=(), branch=one) for one in found]


def fed(x: torch.Tensor) -> Mapping[str, list[dict[str, torch.Tensor]]]:
    return {"forward": [{"x": x}]}


def test_it_is_the_movement_of_the_outputs_over_their_standard_deviation() -> None:
    """Outputs 3 x, without the first 2 x, without the second 1.5 x, of x = (2, 0) and (0, 2): their deviation is 3."""
    module, x = Adds(0.5, 1.0).eval(), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    found = bypassed(module, branches(module, x), CALLS, [fed(x)])
    np.testing.assert_allclose(found, [(2 / 3) ** 2, (3 / 3) ** 2], rtol=1e-6)
    torch.testing.assert_close(module(x), 3 * x)         # and the module is as it was
    # samples in other batches count alike, each batch over its own deviation
    np.testing.assert_allclose(bypassed(module, branches(module, x), CALLS, [fed(x), fed(2 * x)]), found, rtol=1e-6)


def test_of_classes_it_is_the_divergence_of_what_is_predicted() -> None:
    """0.25 and 0.75, and without the second branch twice 0.5."""
    module, x = Adds(0.0, 0.0, (0.0, math.log(3))).eval(), torch.zeros(3, 2)
    found = bypassed(module, branches(module, x), CALLS, [fed(x)], frozenset({"forward/0"}))
    np.testing.assert_allclose(found, [0, 2 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("measure", ["taylor", "fisher", "activation", "magnitude"])
def test_a_branch_is_left_out_whatever_the_measure_of_the_widths(networks, measure) -> None:
    module = networks.Perceptron().eval()
    x = torch.randn(16, 8)
    widths, _ = find_channel_groups(module, CALLS, fed(x))
    alone = rank(measure, module, widths, [2.0] * len(widths), CALLS, [fed(x)])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.add = module, Adds(0.5, 1.0)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x), self.add(x[:, :2])

    both = Both().eval()
    inner, _ = find_channel_groups(both, CALLS, fed(x))
    inner = [group for group in inner if group.name.startswith("inner")]
    first, second = branches(both, x)
    few = torch.zeros(2, 8)
    few[0, 0], few[1, 1] = 2.0, 2.0
    groups = [first, *inner, second]
    scores = rank(measure, both, groups, [2.0, *[2.0] * len(inner), 4.0], CALLS, [fed(x)], few=[fed(few)])
    for score, expected in zip(scores[1:-1], alone, strict=True):
        np.testing.assert_allclose(score, expected, rtol=1e-5)
    if measure in ("taylor", "fisher"):
        np.testing.assert_allclose([scores[0][0], scores[-1][0]], [4 / 9, 1], rtol=1e-6)
    else:       # of two branches of 2 and 4 the mean one counts as much as they cost on average
        np.testing.assert_allclose([scores[0][0], scores[-1][0]], [4 / 9 / (13 / 18) * 3, 1 / (13 / 18) * 3], rtol=1e-6)


def test_without_samples_it_is_refused() -> None:
    module, x = Adds(0.5, 1.0).eval(), torch.zeros(2, 2)
    with pytest.raises(CompressError, match="importance of blocks needs calibration samples, and there are none"):
        bypassed(module, branches(module, x), CALLS, [])
