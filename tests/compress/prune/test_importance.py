from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.groups import Edit, Group, find_channel_groups
from compress.prune.importance import magnitude, taylor


def pair():
    """Two hidden units with easy numbers: y = 5 (1 x + 2) + 7 (3 x + 0)."""
    module = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
        module[0].bias.copy_(torch.tensor([2.0, 0.0]))
        module[1].weight.copy_(torch.tensor([[5.0, 7.0]]))
    edits = Edit(path="0", role="out", index=((0,), (1,))), Edit(path="1", role="in", index=((0,), (1,)))
    return module, Group(name="0", kind="channels", units=2, edits=edits)


def test_magnitude_is_squared_weights_over_the_mean_times_macs():
    module, group = pair()
    (scores,) = magnitude(module, [group], [10.0])
    # 1 + 25 = 26 and 9 + 49 = 58, mean 42
    np.testing.assert_allclose(scores, [260 / 42, 580 / 42], rtol=1e-6)


def test_magnitude_of_a_unit_sums_its_channels():
    module, _ = pair()
    whole = Group(
        name="0",
        kind="channels",
        units=1,
        edits=(Edit(path="0", role="out", index=((0, 1),)), Edit(path="1", role="in", index=((0, 1),))),
    )
    np.testing.assert_allclose(magnitude(module, [whole], [4.0])[0], [4.0])


@pytest.mark.filterwarnings("error")
def test_taylor_is_the_squared_contribution_to_the_output(calls):
    module, group = pair()
    module.forward = lambda x: module[1](module[0](x))
    x = torch.tensor([[4.0], [-3.0]])
    (scores,) = taylor(module, [group], calls, [{"forward": [{"x": x}]}])
    # contributions: 5 (x + 2) = 30, -5 and 21 x = 84, -63, each times the same random number v of its sample
    v = torch.randn(2, 1, generator=torch.Generator().manual_seed(0))[:, 0].double().numpy()
    spread = 26 * 3.5  # y = 26 x + 10 (+ bias): 7 apart, half of it
    expected = [np.mean((v * [30, -5] / spread) ** 2), np.mean((v * [84, -63] / spread) ** 2)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_taylor_sees_that_a_unit_is_never_active(networks, calls):
    module = networks.Perceptron().eval()
    with torch.no_grad():
        module.first.bias[7] = -100  # its relu never opens
    group, _ = find_channel_groups(module, calls, {"forward": [{"x": torch.randn(2, 8)}]})[0]
    (scores,) = taylor(module, [group], calls, [{"forward": [{"x": torch.randn(16, 8)}]} for _ in range(2)])
    assert scores[7] == 0
    assert (np.delete(scores, 7) > 0).all()


def test_taylor_of_convolutions_and_tokens_has_one_score_a_unit(networks, calls):
    module = networks.Convolutions().eval()
    x = torch.randn(4, 1, 4, 4)
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": x}]})
    assert [score.shape for score in taylor(module, groups, calls, [{"forward": [{"x": x}]}])] == [(16,), (8,)]


def test_taylor_leaves_no_gradient_and_no_hook(networks, calls):
    module = networks.Perceptron().eval().requires_grad_(False)
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": torch.randn(2, 8)}]})
    taylor(module, groups, calls, [{"forward": [{"x": torch.randn(2, 8)}]}])
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_taylor_without_samples_or_with_broken_weights_is_an_error(networks, calls):
    module, group = pair()
    with pytest.raises(CompressError, match="needs calibration samples"):
        taylor(module, [group], calls, [])
    module = networks.Perceptron().eval()
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": torch.randn(2, 8)}]})
    with torch.no_grad():
        module.last.weight[0, 0] = torch.nan
    with pytest.raises(CompressError, match="importance of 'first' is not finite"):
        taylor(module, groups, calls, [{"forward": [{"x": torch.randn(2, 8)}]}])
