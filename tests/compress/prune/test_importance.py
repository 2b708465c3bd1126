from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.errors import CompressError
from compress.prune.groups import find_channel_groups
from compress.prune.importance import rank, relative


def test_an_average_unit_of_every_group_counts_what_it_costs():
    first, second = relative([np.array([1.0, 3.0]), np.array([10.0, 30.0, 20.0])], [4.0, 6.0])
    np.testing.assert_allclose(first, [2, 6])
    np.testing.assert_allclose(second, [3, 9, 6])


@pytest.mark.parametrize("measure", ["taylor", "fisher", "activation", "magnitude"])
def test_units_that_do_nothing_are_the_least_important(networks, calls, measure):
    module = networks.Perceptron().eval()
    with torch.no_grad():
        module.second.weight[:, 5] = 0  # nothing reads it
        module.first.weight[5] = 0
    feed = {"forward": [{"x": torch.randn(16, 8)}]}
    groups, _ = find_channel_groups(module, calls, feed)
    scores = rank(measure, module, groups, [1.0] * len(groups), calls, [feed], frozenset({"forward/0"}))
    assert int(scores[0].argmin()) == 5
    assert scores[0][5] == pytest.approx(0, abs=1e-12)


def test_a_score_that_is_not_finite_is_named(networks, calls):
    module = networks.Perceptron().eval()
    feed = {"forward": [{"x": torch.randn(2, 8)}]}
    groups, _ = find_channel_groups(module, calls, feed)
    with torch.no_grad():
        module.last.weight[0, 0] = torch.nan
    with pytest.raises(CompressError, match="importance of 'first' is not finite"):
        rank("taylor", module, groups, [1.0] * len(groups), calls, [feed])
