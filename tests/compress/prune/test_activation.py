from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.errors import CompressError
from compress.prune.activation import activation


def test_a_units_share_of_the_power_of_what_reads_it(networks, calls):
    module, group = networks.pair()
    feeds = [{"forward": [{"x": torch.tensor([[4.0]])}]}, {"forward": [{"x": torch.tensor([[-3.0]])}]}]
    # the units are x + 2 = 6, -1 and 3 x = 12, -9: mean squares 18.5 and 112.5, times 5^2 and 7^2
    expected = np.array([25 * 18.5, 49 * 112.5])
    np.testing.assert_allclose(activation(module, [group], calls, feeds)[0], expected / expected.sum(), rtol=1e-6)


def test_convolutions_and_flattened_images(networks, calls):
    module = networks.Convolutions().eval()
    from compress.prune.groups import find_channel_groups

    feed = {"forward": [{"x": torch.randn(4, 1, 4, 4)}]}
    groups, _ = find_channel_groups(module, calls, feed)
    one, two = activation(module, groups, calls, [feed])
    assert (one.shape, two.shape) == ((16,), (8,))
    np.testing.assert_allclose([one.sum(), two.sum()], [1, 1])  # all that reads them reads nothing else
    with torch.no_grad():
        module.last.weight[:, :16] = 0
    assert activation(module, groups, calls, [feed])[1][0] == 0


def test_without_samples(networks, calls):
    module, group = networks.pair()
    with pytest.raises(CompressError, match="importance 'activation' needs calibration samples"):
        activation(module, [group], calls, [])
