from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import CompressError
from compress.model import Graph
from compress.prune import PruneConfig
from compress.prune.structured import rank_module
from tests.compress.prune.pruning import prune_module


def shapes(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")}


def silence(module, zeros):
    """Zero the weights that read some channels: path -> columns."""
    with torch.no_grad():
        for path, columns in zeros.items():
            module.get_submodule(path).weight[:, columns] = 0


def test_perceptron_to_half(networks, prune_one, noise):
    module = networks.Perceptron()
    silence(module, {"second": range(8, 32)})
    pruned = prune_one(module, noise(16, 8), macs=0.5, round_to=8, protect=("last",))
    # only the 32 hidden units can go, each 8 + 16 MACs: 832 - 24 k <= 416 needs k = 18, rounded up to 24
    assert shapes(pruned.module) == {"first.weight": (8, 8), "second.weight": (16, 8), "last.weight": (4, 16)}
    assert pruned.removed == {"first": 24}
    assert pruned.skipped["second"] == "left whole by protect"
    x = torch.from_numpy(noise(5, 8))
    torch.testing.assert_close(pruned.module(x), module(x), rtol=1e-5, atol=1e-6)  # what went was silent
    assert (pruned.module.first.out_features, pruned.module.second.in_features) == (8, 8)


def test_convolutions_keep_their_batch_norm(networks, prune_one, noise):
    module = networks.Convolutions()
    silence(module, {"two": [1, 3, 5, 7, 9, 11, 13, 15]})
    pruned = prune_one(module, noise(16, 1, 4, 4), macs=0.6, round_to=8)
    # 16 x (16 x 9 + 16 x 8 x 9 + 8 x 3) MACs; 'two' has 8 channels, no more than round_to: 16 -> 8 leaves 51 %
    assert shapes(pruned.module) == {
        "one.weight": (8, 1, 3, 3),
        "norm.weight": (8,),
        "two.weight": (8, 8, 3, 3),
        "last.weight": (3, 128),
    }
    assert pruned.skipped["two"] == "it has 8 channels, no more than round_to=8"
    assert torch.equal(pruned.module.norm.running_mean, module.norm.running_mean[::2])
    x = torch.from_numpy(noise(5, 1, 4, 4))
    torch.testing.assert_close(pruned.module(x), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_transformer_block_loses_heads_and_hidden_units(networks, prune_one, noise, importance):
    module = networks.Block()
    with torch.no_grad():  # heads 1 and 2 and hidden units 32.. do nothing
        for layer in (module.attention.q, module.attention.k, module.attention.v):
            layer.weight[8:24] = 0
            layer.bias[8:24] = 0
        module.attention.out.weight[:, 8:24] = 0
        module.down.weight[:, 32:] = 0
        module.up.weight[32:] = 0
        module.up.bias[32:] = 0
    pruned = prune_one(module, noise(16, 5, 32), macs=0.5, importance=importance)
    assert shapes(pruned.module) == {
        "norm1.weight": (32,),
        "norm2.weight": (32,),
        "attention.q.weight": (16, 32),
        "attention.k.weight": (16, 32),
        "attention.v.weight": (16, 32),
        "attention.out.weight": (32, 16),
        "up.weight": (32, 32),
        "down.weight": (32, 32),
    }
    assert pruned.module.attention.heads == 2
    assert pruned.attributes == {"attention": {"heads": 2}}
    assert [(g.name, g.kind, g.before, g.after) for g in pruned.groups] == [
        ("attention", "heads", 4, 2),
        ("up", "channels", 64, 32),
    ]
    x = torch.from_numpy(noise(3, 7, 32))
    torch.testing.assert_close(pruned.module(x), module(x), rtol=1e-5, atol=1e-6)


def test_branches_shrink_together(networks, prune_one, noise):
    module = networks.Branches()
    silence(module, {"join": [*range(8, 24), *range(32, 40)], "side": range(8, 16)})
    pruned = prune_one(module, noise(16, 8), macs=0.45, round_to=8)
    # a 24 -> 8, b 16 -> 8, so c and the concatenation 40 -> 16
    assert shapes(pruned.module) == {
        "a.weight": (8, 8),
        "b.weight": (8, 8),
        "c.weight": (16, 8),
        "join.weight": (4, 16),
        "side.weight": (4, 8),
    }
    x = torch.from_numpy(noise(5, 8))
    torch.testing.assert_close(pruned.module(x), module(x), rtol=1e-5, atol=1e-6)


def test_depthwise_groups_are_rewritten(networks, prune_one, noise):
    pruned = prune_one(networks.Separable(), noise(8, 1, 4, 4), macs=0.3, round_to=4)
    depthwise = pruned.module.depthwise
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == pruned.module.one.out_channels < 16
    assert pruned.attributes == {"depthwise": {"groups": depthwise.groups}}
    assert pruned.module(torch.randn(2, 1, 4, 4)).shape == (2, 3)


def test_gates_are_cut_with_their_channels(networks, prune_one, noise):
    module = networks.Gated()
    silence(module, {"down": range(8, 24)})
    pruned = prune_one(module, noise(16, 8), macs=0.4, round_to=8)
    assert shapes(pruned.module) == {"up.weight": (16, 8), "down.weight": (4, 8)}
    x = torch.from_numpy(noise(5, 8))
    torch.testing.assert_close(pruned.module(x), module(x), rtol=1e-5, atol=1e-6)


def test_widths_stay_multiples_of_round_to(networks, prune_one, noise):
    for round_to in (1, 4, 5, 16):
        pruned = prune_one(networks.Block(), noise(4, 5, 32), macs=0.7, round_to=round_to)
        width = pruned.module.up.out_features
        assert width == 64 or width % round_to == 0


def test_the_input_is_left_as_it_was_and_the_result_is_deterministic(networks, prune_one, noise):
    module = networks.Block()
    before, x = copy.deepcopy(module.state_dict()), noise(16, 5, 32)
    one, two = (prune_one(module, x, macs=0.6) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.attention.heads == 4
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True))


def test_protect_is_a_glob_over_paths_and_what_is_under_them(networks, prune_one, noise):
    pruned = prune_one(networks.Block(), noise(4, 5, 32), macs=0.8, protect=("att*",))
    assert [group.name for group in pruned.groups] == ["up"]
    assert pruned.skipped["attention"] == "left whole by protect"
    with pytest.raises(CompressError, match=r"protect=\['attention', 'down'\] leaves nothing to prune: all 2 groups"):
        prune_one(networks.Block(), noise(4, 5, 32), protect=("attention", "down"))


def test_errors_say_what_to_do(networks, prune_one, noise, calls):
    with pytest.raises(CompressError, match=r"cannot prune to 1% of the MACs: the smallest share"):
        prune_one(networks.Block(), noise(4, 5, 32), macs=0.01)
    with pytest.raises(CompressError, match=r"nothing in the model can be pruned \(.*down: its channels reach"):
        prune_one(networks.Softmax(), noise(4, 8))
    with pytest.raises(CompressError, match="nothing in the model can be pruned"):  # and nobody is told of no progress
        rank_module(nn.Sequential(nn.Linear(8, 2)), calls, lambda size: [{"forward": [{"input": noise(4, 8)}]}], {},
                    PruneConfig(), lambda done, of, what: None)  # fmt: skip
    with pytest.raises(CompressError, match="pruning needs calibration samples"):
        prune_module(networks.Block(), calls, lambda size: [], {}, PruneConfig())


class RandomBranches(nn.Module):
    """Layers of random width; each reads the concatenation, or the sum where widths agree, of two earlier ones."""

    def __init__(self, plan):
        super().__init__()
        self.plan, self.added, widths = plan, [], [6]
        self.layers = nn.ModuleList()
        for width, one, other, _ in plan:
            one, other = one % len(widths), other % len(widths)
            self.added.append(widths[one] == widths[other])
            self.layers.append(nn.Linear(widths[one] if self.added[-1] else widths[one] + widths[other], width))
            widths.append(width)
        self.last = nn.Linear(widths[-1], 3)

    def forward(self, x):
        values = [x]
        for layer, added, (_, one, other, activation) in zip(self.layers, self.added, self.plan, strict=True):
            a, b = values[one % len(values)], values[other % len(values)]
            values.append(getattr(torch, activation)(layer(a + b if added else torch.cat([a, b], -1))))
        return self.last(values[-1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    plan=st.lists(
        st.tuples(
            st.sampled_from([4, 8, 12, 16]),
            st.integers(0, 5),
            st.integers(0, 5),
            st.sampled_from(["relu", "tanh", "sigmoid"]),
        ),
        min_size=2,
        max_size=5,
    ),
    share=st.sampled_from([0.6, 0.8, 0.95]),
)
def test_random_branching_networks(plan, share):
    torch.manual_seed(0)
    module = RandomBranches(plan).eval()
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    macs = {name: layer.weight.numel() for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    try:
        pruned = prune_module(
            module, {"forward": Graph()}, lambda size: [{"forward": [{"x": x}]}], macs,
            PruneConfig(macs=share, round_to=2),
        )
    except CompressError as error:
        assert "smallest share" in str(error) or "nothing in the model" in str(error)  # noqa: PT017 - both are answers
        return
    left = {name: layer for name, layer in pruned.module.named_modules() if isinstance(layer, nn.Linear)}
    assert sum(layer.weight.numel() for layer in left.values()) <= share * sum(macs.values())
    assert pruned.module(torch.from_numpy(x)).shape == (8, 3)
    for name, layer in left.items():
        assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
        assert layer.out_features == module.get_submodule(name).out_features - pruned.removed.get(name, 0) >= 2
    assert pruned.check < 1e-4


def test_samples_bounds_what_importance_reads(networks, calls):
    read = itertools.count()

    def batches(size):
        for _ in range(10):
            next(read)
            yield {"forward": [{"x": np.zeros((size, 5, 32), np.float32)}]}

    prune_module(networks.Block(), calls, batches, {}, PruneConfig(samples=40))
    assert next(read) == 1 + 1 + 3  # a batch for the check, one to trace with; 40 samples in batches of 16


class Reducing(nn.Module):
    """As in SegFormer: the code takes the channels before a convolution for those behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.reduce, self.last = nn.Linear(8, 16), nn.Conv1d(16, 16, 2, 2), nn.Linear(16, 4)

    def forward(self, x):
        x = self.up(x).relu()
        batch, length, channels = x.shape
        y = self.reduce(x.transpose(1, 2).reshape(batch, channels, length)).reshape(batch, channels, -1)
        return self.last(y.transpose(1, 2).tanh())


def test_channels_that_the_code_wants_as_many_of_go_together(prune_one, noise) -> None:
    """Each has a group of its own, and both at once agree: only where one loses more than the other does it show."""
    pruned = prune_one(Reducing(), noise(16, 6, 8), macs=0.5, round_to=4, importance="magnitude")
    (group,) = pruned.groups
    assert (group.name, group.before) == ("up+reduce", 16)
    assert tuple(pruned.module.reduce.weight.shape) == (group.after, group.after, 2)
    assert "up" not in pruned.skipped
