from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.gradients import fisher, taylor
from compress.prune.groups import Edit, Group, find_channel_groups


@pytest.mark.filterwarnings("error")
def test_taylor_is_the_squared_contribution_to_the_output(networks, calls):
    module, group = networks.pair()
    x = torch.tensor([[4.0], [-3.0]])
    (scores,) = taylor(module, [group], calls, [{"forward": [{"x": x}]}])
    # contributions: 5 (x + 2) = 30, -5 and 21 x = 84, -63, each times the same random number v of its sample
    v = torch.randn(2, 1, generator=torch.Generator().manual_seed(0))[:, 0].double().numpy()
    spread = 26 * 3.5  # y = 26 x + 10 (+ bias): 7 apart, half of it
    expected = [np.mean((v * [30, -5] / spread) ** 2), np.mean((v * [84, -63] / spread) ** 2)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_what_two_layers_read_is_added_up_before_it_is_squared(calls):
    """y = 2 h + 3 h of one tensor: without the unit the output moves by 5 h, not by the root of 2^2 + 3^2."""
    module = nn.ModuleDict({"up": nn.Linear(1, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    with torch.no_grad():
        module["a"].weight.copy_(torch.tensor([[2.0, 1.0]]))
        module["b"].weight.copy_(torch.tensor([[3.0, -1.0]]))

    def forward(x):
        h = module["up"](x)
        return module["a"](h) + module["b"](h)

    module.forward = forward
    index = ((0,), (1,))
    edits = tuple(Edit(path=path, role=role, index=index) for path, role in (("up", "out"), ("a", "in"), ("b", "in")))
    group = Group(name="up", kind="channels", units=2, edits=edits)
    x = torch.randn(64, 1)
    (scores,) = taylor(module, [group], calls, [{"forward": [{"x": x}]}])
    h = module["up"](x)[:, 0].detach()
    y = forward(x).detach()
    v = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    np.testing.assert_allclose(scores[0], float((v * 5 * h / y.std(correction=0)).square().mean()), rtol=1e-4)
    np.testing.assert_allclose(scores[1], 0, atol=1e-10)  # 1 - 1


def test_taylor_sees_that_a_unit_is_never_active(networks, calls):
    module = networks.Perceptron().eval()
    with torch.no_grad():
        module.first.bias[7] = -100  # its relu never opens
    group, _ = find_channel_groups(module, calls, {"forward": [{"x": torch.randn(2, 8)}]})[0]
    (scores,) = taylor(module, [group], calls, [{"forward": [{"x": torch.randn(16, 8)}]} for _ in range(2)])
    assert scores[7] == 0
    assert (np.delete(scores, 7) > 0).all()


def test_convolutions_and_tokens_have_one_score_a_unit(networks, calls):
    module = networks.Convolutions().eval()
    feed = {"forward": [{"x": torch.randn(4, 1, 4, 4)}]}
    groups, _ = find_channel_groups(module, calls, feed)
    assert [score.shape for score in taylor(module, groups, calls, [feed])] == [(16,), (8,)]


@pytest.mark.parametrize("confidence", [0.3, 1.0])
def test_fisher_is_the_movement_of_the_predicted_probabilities(calls, confidence):
    """A logistic choice: for logits z and a unit that adds c to them, c' (diag p - p p') c."""
    module = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    added = np.array([[1.0, -1.0, 0.5], [2.0, 0.0, 0.0]]) * confidence
    with torch.no_grad():
        module[0].weight.fill_(0)
        module[0].bias.fill_(1)
        module[1].weight.copy_(torch.from_numpy(added.T))
        module[1].bias.fill_(0)
    module.forward = lambda x: module[1](module[0](x))
    index = ((0,), (1,))
    edits = Edit(path="0", role="out", index=index), Edit(path="1", role="in", index=index)
    group = Group(name="0", kind="channels", units=2, edits=edits)
    feed = {"forward": [{"x": torch.zeros(20000, 1)}]}
    (scores,) = fisher(module, [group], calls, [feed], frozenset({"forward/0"}))
    p = np.exp(added.sum(0)) / np.exp(added.sum(0)).sum()
    expected = [c @ (np.diag(p) - np.outer(p, p)) @ c for c in added]
    np.testing.assert_allclose(scores, expected, rtol=0.05, atol=1e-9)
    (noise,) = fisher(module, [group], calls, [feed], frozenset())
    np.testing.assert_array_equal(noise, taylor(module, [group], calls, [feed])[0])


def test_no_gradient_and_no_hook_is_left(networks, calls):
    module = networks.Perceptron().eval().requires_grad_(False)
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": torch.randn(2, 8)}]})
    taylor(module, groups, calls, [{"forward": [{"x": torch.randn(2, 8)}]}])
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_without_samples(networks, calls):
    module, group = networks.pair()
    with pytest.raises(CompressError, match="importance 'taylor' needs calibration samples"):
        taylor(module, [group], calls, [])
    with pytest.raises(CompressError, match="importance 'fisher' needs calibration samples"):
        fisher(module, [group], calls, [], frozenset())
