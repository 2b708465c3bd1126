from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import CompressError
from compress.prune import PruneConfig
from compress.prune.channels import apply_channels
from compress.prune.check import trials
from compress.prune.heads import find_head_groups
from compress.prune.streams import find_stream_groups
from tests.compress.prune.pruning import prune_module

ALL = ("channels", "heads", "recurrent", "width")


def streams(module, calls, x):
    _, _, claimed = find_head_groups(module)
    feed = {"forward": [{"x": x}]}
    found = find_stream_groups(module.eval(), calls, feed, claimed=claimed)
    return {first.name: first for first, *_ in found.alternatives}, found.skipped


def places(group):
    """path (and tensor) and role -> the channels of units 0 and last."""
    return {(edit.path + edit.tensor, edit.role): (edit.index[0], edit.index[-1]) for edit in group.edits}


def test_a_residual_stream_is_one_group(networks, calls):
    groups, skipped = streams(networks.Tower(), calls, torch.randint(0, 12, (2, 5)))
    stream = groups["position"]
    assert (stream.kind, stream.units) == ("width", 32)
    column = ((0,), (31,))
    assert places(stream) == {
        **{(path, "out"): column for path in ("table", "position", "start", "norm")},
        **{(f"blocks.{n}.{layer}", "out"): column for n in (0, 1) for layer in (
            "attention.out", "down", "norm1", "norm2")},
        **{(f"blocks.{n}.{layer}", "in"): column for n in (0, 1) for layer in (
            "attention.q", "attention.k", "attention.v", "up")},
        ("head", "in"): column,
    }
    assert skipped == {"head": "its channels reach an output of the model"}


def test_a_recurrent_layer_loses_hidden_units(networks, calls):
    groups, _ = streams(networks.Sequence(), calls, torch.randint(0, 20, (2, 5)))
    assert places(groups["rnn"]) == {
        ("rnn", "out"): ((0,), (15,)), ("up", "in"): ((0, 16), (15, 31)), ("last", "in"): ((24, 40), (39, 55))}
    assert (groups["rnn"].kind, groups["table"].kind) == ("recurrent", "width")
    assert places(groups["table"]) == {("table", "out"): ((0,), (15,)), ("rnn", "in"): ((0,), (15,))}


def test_a_smaller_norm_normalises_over_what_is_left(calls, prune_one):
    """Embedding - LayerNorm - Linear, with four channels that count least: computed by hand from what is left."""
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.last = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)

        def forward(self, x):
            return self.last(self.norm(self.up(x)))

    module = Normed()
    with torch.no_grad():
        module.last.weight[:, [1, 4, 6, 11]] = 0
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    small = prune_one(module, x, macs=0.7, round_to=4, structures=ALL).module
    kept = [0, 2, 3, 5, 7, 8, 9, 10]
    hidden = (torch.from_numpy(x) @ module.up.weight.T + module.up.bias)[:, kept]
    normed = functional.layer_norm(hidden, (8,), module.norm.weight[kept], module.norm.bias[kept])
    expected = normed @ module.last.weight[:, kept].T + module.last.bias
    torch.testing.assert_close(small(torch.from_numpy(x)), expected, rtol=1e-5, atol=1e-6)
    assert small.norm.normalized_shape == (8,)


class Pieces(nn.Module):
    """As in LayoutLM: one parameter is added to several embeddings side by side, which are a group each."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(24))
        self.x, self.y, self.last = nn.Embedding(10, 16), nn.Embedding(10, 8), nn.Linear(24, 2)

    def forward(self, x):
        return self.last(torch.cat([self.x(x), self.y(x)], -1) + self.start).mean(1)


def test_groups_that_begin_with_one_parameter_are_told_apart(calls, prune_one):
    groups, _ = streams(Pieces(), calls, torch.randint(0, 10, (2, 5)))
    assert {name: group.units for name, group in groups.items()} == {"start": 16, "y": 8}
    x = np.random.default_rng(0).integers(0, 10, (16, 5))
    pruned = prune_one(Pieces(), x, params=0.5, round_to=2, structures=ALL, importance="magnitude")
    left = {group.name: group.after for group in pruned.groups}
    assert left["start"] < 16
    assert left["y"] < 8
    assert (pruned.module.x.embedding_dim, pruned.module.y.embedding_dim) == (left["start"], left["y"])
    assert pruned.module.start.shape == (left["start"] + left["y"],)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_smaller_recurrent_layer_computes_what_is_left(networks, calls, kind):
    module = networks.Sequence(kind).eval()
    silent = [2, 3, 7, 8, 10, 11, 13, 15]
    with torch.no_grad():  # nothing reads these units, neither the layer's own steps nor its second layer nor others
        for name, weight in module.rnn.named_parameters():
            if name.startswith("weight_hh"):
                weight[:, silent] = 0
            elif name.startswith("weight_ih_l1"):
                weight[:, silent + [16 + unit for unit in silent]] = 0
        module.up.weight[:, silent + [16 + unit for unit in silent]] = 0
        module.last.weight[:, [24 + unit for unit in silent] + [40 + unit for unit in silent]] = 0
    x = np.random.default_rng(0).integers(0, 20, (16, 5))
    macs = {"rnn": sum(p.numel() for p in module.rnn.parameters() if p.dim() == 2), "up": 32 * 24, "last": 56 * 4}
    config = PruneConfig(macs=0.7, round_to=8, importance="activation")
    small = prune_module(module, calls, lambda size: [{"forward": [{"x": x}]}], macs, config).module
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert (small.rnn.hidden_size, small.rnn.input_size) == (8, 16)
    assert {name: tuple(p.shape) for name, p in small.rnn.named_parameters() if name.endswith("_l1_reverse")} == {
        "weight_ih_l1_reverse": (8 * gates, 16), "weight_hh_l1_reverse": (8 * gates, 8),
        "bias_ih_l1_reverse": (8 * gates,), "bias_hh_l1_reverse": (8 * gates,)}
    torch.testing.assert_close(small(torch.from_numpy(x)), module(torch.from_numpy(x)), rtol=1e-5, atol=1e-6)


def test_a_tied_head_stays_tied(networks, prune_one):
    module = networks.Tower(tied=True).eval()
    x = np.random.default_rng(0).integers(0, 12, (16, 5))
    pruned = prune_one(module, x, macs=0.7, round_to=8, structures=("width",))
    small = pruned.module
    assert small.head.weight is small.table.weight
    width = small.table.embedding_dim
    assert width in (8, 16, 24)
    assert tuple(small.head.weight.shape) == (12, width)
    assert (small.position.shape[-1], small.start.shape[-1], small.scale.shape) == (width, width, (1,))
    assert [group.after for group in pruned.groups if group.kind == "width"] == [width]


def test_a_weight_that_two_layers_have_as_one_is_not_torn(calls):
    class Torn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.last(self.a(x).relu()) + self.last(self.b(self.b(x).relu()).tanh())

    groups, skipped = streams(Torn(), calls, torch.randn(4, 8))
    assert groups == {}
    assert "another layer's too" in skipped["a"]


@pytest.mark.parametrize("name", ["width", "num_channels"])
def test_numbers_that_modules_repeat_are_rewritten(calls, name):
    """A module that reshapes by the width it was built with."""
    class Reshaping(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(10, 16), nn.Linear(16, 2)
            setattr(self, name, 16)

        def forward(self, x):
            return self.last(self.table(x).reshape(-1, getattr(self, name))).reshape(len(x), -1)

    module, x = Reshaping().eval(), torch.randint(0, 10, (2, 5))
    found = find_stream_groups(module, calls, {"forward": [{"x": x}]}, claimed={}).alternatives
    (alternatives,) = found
    assert [group.attributes for group in alternatives] == [{}, {"": {name: 1}}]
    (chosen,) = trials(module, found, calls, {"forward": [{"x": x}]})
    assert chosen.attributes == {"": {name: 1}}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.LSTM(16, 16, proj_size=4, batch_first=True), "proj_size"),
        (lambda: nn.LSTM(16, 16, batch_first=True), None),
    ],
)
def test_projected_states_are_left_whole(calls, layer, reason):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer()
            self.last = nn.Linear(self.rnn.proj_size or 16, 2)

        def forward(self, x):
            return self.last(self.rnn(x)[0])

    groups, skipped = streams(Net(), calls, torch.randn(2, 3, 16))
    assert ("rnn" in groups) == (reason is None)
    assert reason is None or reason in skipped["rnn"]


def test_what_is_tied_to_other_layers_is_left_whole(networks, calls):
    groups, skipped = streams(networks.Recurrent(), calls, torch.randint(0, 10, (2, 5)))
    assert set(groups) == {"embedding", "enter", "up"}
    assert "'attention' (MultiheadAttention)" in skipped["lstm"]
    assert "'attention' (MultiheadAttention)" in skipped["attention"]  # which reads what it is added to


class Normed(nn.Module):
    """Two convolutions, each behind a norm with a weight and a bias of its own, and PReLU; on 4 x 4 pictures."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 32) -> None:
        super().__init__()
        self.one, self.first, self.slope = nn.Conv2d(1, width, 3, padding=1), norm(width), nn.PReLU(width)
        self.two, self.second, self.last = nn.Conv2d(width, 16, 3, padding=1), norm(16), nn.Linear(16, 3)
        for layer in (self.first, self.second):
            nn.init.uniform_(layer.weight, 0.5, 1.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.first(self.one(x)))
        return self.last(self.second(self.two(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(("norm", "units", "left"), [
    (lambda width: nn.InstanceNorm2d(width, affine=True), 32, {"num_features": 16}),
    (lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True), 32, {"num_features": 16}),
    (lambda width: nn.GroupNorm(8, width), 8, {"num_channels": 16, "num_groups": 4}),
    (lambda width: nn.GroupNorm(width, width), 32, {"num_channels": 16, "num_groups": 16}),
])
def test_norms_of_channels_shrink_with_their_layer(prune_one, noise, norm, units, left) -> None:
    """Channels that a GroupNorm takes together go together; none of this is the width of a stream."""
    module = Normed(norm)
    pruned = prune_one(module, noise(4, 1, 4, 4), params=0.6, round_to=units // 2, max_share=0.6)
    assert {group.name: (group.kind, group.before) for group in pruned.groups}["one"] == ("channels", units)
    assert pruned.module.one.weight.shape[0] == 16
    assert {name: getattr(pruned.module.first, name) for name in left} == left
    fresh = Normed(norm)
    apply_channels(fresh, {"attributes": pruned.attributes}, pruned.module.state_dict())
    fresh.load_state_dict(pruned.module.state_dict())
    x = torch.from_numpy(noise(4, 1, 4, 4))
    torch.testing.assert_close(fresh.eval()(x), pruned.module(x))


def test_a_group_norm_over_all_channels_leaves_them_whole(prune_one, noise) -> None:
    with pytest.raises(CompressError, match="one: its channels are mixed with each other before a layer reads them"):
        prune_one(Normed(lambda width: nn.GroupNorm(1, width)), noise(4, 1, 4, 4))
