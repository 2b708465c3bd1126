from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.prune.check import trial
from compress.prune.groups import find_channel_groups
from compress.prune.heads import find_head_groups


def groups_of(module, calls, *shape, claimed=None):
    feeds = {"forward": [{"x": torch.randn(*shape)}]}
    groups, skipped = find_channel_groups(module.eval(), calls, feeds, claimed=claimed)
    return {group.name: group for group in groups}, skipped


def layout(group):
    """(path, role) -> the channels of units 0 and last."""
    return {(edit.path, edit.role): (edit.index[0], edit.index[-1]) for edit in group.edits}


def test_a_hidden_unit_is_a_row_of_one_layer_and_a_column_of_the_next(networks, calls):
    groups, skipped = groups_of(networks.Perceptron(), calls, 2, 8)
    assert layout(groups["first"]) == {("first", "out"): ((0,), (31,)), ("second", "in"): ((0,), (31,))}
    assert layout(groups["second"]) == {("second", "out"): ((0,), (15,)), ("last", "in"): ((0,), (15,))}
    assert set(groups) == {"first", "second"}
    assert "output of the model" in skipped["last"]


def test_a_conv_channel_takes_its_norm_and_the_next_layers_columns(networks, calls):
    groups, _ = groups_of(networks.Convolutions(), calls, 2, 1, 4, 4)
    assert layout(groups["one"]) == {
        ("one", "out"): ((0,), (15,)),
        ("norm", "out"): ((0,), (15,)),
        ("two", "in"): ((0,), (15,)),
    }
    # flattened: channel c of 4 x 4 is columns 16 c .. 16 c + 15
    assert layout(groups["two"])["last", "in"] == (tuple(range(16)), tuple(range(112, 128)))


def test_concatenation_shifts_and_addition_ties(networks, calls):
    groups, _ = groups_of(networks.Branches(), calls, 2, 8)
    assert layout(groups["a"]) == {
        ("a", "out"): ((0,), (23,)),
        ("c", "out"): ((0,), (23,)),
        ("join", "in"): ((0,), (23,)),
    }
    assert layout(groups["b"]) == {
        ("b", "out"): ((0,), (15,)),
        ("c", "out"): ((24,), (39,)),
        ("join", "in"): ((24,), (39,)),
        ("side", "in"): ((0,), (15,)),
    }


def test_a_gate_goes_with_its_channel(networks, calls):
    groups, _ = groups_of(networks.Gated(), calls, 2, 8)
    assert groups["up"].units == 24
    assert layout(groups["up"]) == {("up", "out"): ((0, 24), (23, 47)), ("down", "in"): ((0,), (23,))}


def test_depthwise_and_transposed_convolutions(networks, calls):
    groups, _ = groups_of(networks.Separable(), calls, 2, 1, 4, 4)
    assert set(layout(groups["one"])) == {("one", "out"), ("depthwise", "out"), ("two", "in")}
    assert set(layout(groups["wider"])) == {("wider", "out"), ("last", "in")}


def test_what_is_tied_to_other_layers_is_skipped_with_the_reason(networks, calls):
    module = networks.Recurrent().eval()
    feed = {"forward": [{"x": torch.randint(0, 10, (2, 5))}]}
    groups, skipped = find_channel_groups(module, calls, feed)
    assert [group.name for group in groups] == ["up"]
    assert "'lstm' (LSTM)" in skipped["enter"]


def test_layer_norm_on_the_residual_stream_is_a_reason(networks, calls):
    module = nn.Sequential(networks.Block(), networks.Block())
    calls = {"forward": type(calls["forward"])("forward")}
    module.forward = lambda x: module[1](module[0](x))
    _, _, claimed = find_head_groups(module)
    groups, skipped = groups_of(module, calls, 2, 5, 32, claimed=claimed)
    assert set(groups) == {"0.up", "1.up"}
    assert "'1.norm1' (LayerNorm)" in skipped["0.down"]


def test_tied_computed_and_unused_weights_are_skipped(calls):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)
            self.b.weight = self.a.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
            self.unused, self.grouped, self.bare = nn.Linear(8, 8), nn.Conv1d(16, 16, 1, groups=2), nn.Linear(8, 16)
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x):
            grouped = self.grouped((self.bare(x) * self.scale)[..., None])[..., 0]
            return (
                self.down(self.a(x).relu())
                + self.down(self.b(x).tanh())
                + self.down(self.normed(x))
                + self.down(grouped)
            )

    module = Odd()
    groups, skipped = groups_of(module, calls, 2, 8)
    assert groups == {}
    assert "another layer's too" in skipped["a"]
    assert "computes its weight" in skipped["normed"]
    assert "does not reach an output" in skipped["unused"]
    assert "bare parameter" in skipped["bare"]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_model_that_torch_pruning_cannot_trace_says_so(calls):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            raise ValueError("no forward today")

    groups, skipped = groups_of(Broken(), calls, 2, 8)
    assert groups == {}
    assert "cannot trace the model (ValueError: no forward today)" in skipped["a"]


def test_heads_are_rows_of_q_k_v_and_columns_of_out(networks):
    ((group,),) = find_head_groups(networks.Block())[0]
    assert (group.name, group.units) == ("attention", 4)
    assert [(edit.path, edit.role) for edit in group.edits] == [
        ("attention.q", "out"),
        ("attention.k", "out"),
        ("attention.v", "out"),
        ("attention.out", "in"),
    ]
    assert all(edit.index[2] == tuple(range(16, 24)) for edit in group.edits)
    assert group.attributes == {"attention": {"heads": 1}}


def named(heads, names, widths=(32, 32, 32), out=("out", 32), **attributes):
    layer = nn.Module()
    for name, width in zip(names, widths, strict=True):
        layer.add_module(name, nn.Linear(32, width))
    layer.add_module(out[0], nn.Linear(out[1], 32))
    layer.num_heads = heads
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def test_spellings_of_attention():
    clip = named(4, ("q_proj", "k_proj", "v_proj"), out=("out_proj", 32), embed_dim=32, head_dim=8)
    ((first, second),) = find_head_groups(clip)[0]
    assert first.attributes == {"": {"num_heads": 1}}
    assert second.attributes == {"": {"num_heads": 1, "embed_dim": 8}}
    fused = named(4, ("qkv",), widths=(96,), out=("proj", 32))
    ((group,),) = find_head_groups(fused)[0]
    assert group.edits[0].index[1] == (*range(8, 16), *range(40, 48), *range(72, 80))
    bert, around, output = named(4, ("query", "key", "value"), out=("unrelated", 32)), nn.Module(), nn.Module()
    bert.all_head_size = 32
    output.dense = nn.Linear(32, 32)
    around.add_module("self", bert)
    around.add_module("output", output)
    ((group,),) = find_head_groups(around)[0]
    assert (group.name, group.edits[-1].path) == ("self", "output.dense")
    assert group.attributes == {"self": {"num_heads": 1, "all_head_size": 8}} or group.attributes == {
        "self": {"all_head_size": 8, "num_heads": 1}
    }


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (named(1, ("q", "k", "v")), "one head"),
        (named(4, ("q", "k", "v"), widths=(32, 12, 12)), "which 4 heads do not share evenly"),
        (named(4, ("q", "k", "v"), widths=(32, 24, 24)), "which 4 heads do not share evenly"),
        (named(4, ("q", "k", "v"), widths=(32, 16, 32)), "which 4 heads do not share evenly"),
        (named(4, ("q", "k", "v"), widths=(32, 8, 8)), "its heads have one key and value in common"),
        (named(4, ("q", "k", "v"), head_dim=16), "says its heads are 16 wide, and the projections say 8"),
        (named(None, ("q", "k", "v")), "does not say how many heads"),
        (named(4, ("q", "k", "v"), out=("elsewhere", 32)), "no output projection"),
    ],
)
def test_attention_that_cannot_lose_heads_says_why(layer, reason):
    groups, skipped, claimed = find_head_groups(layer)
    assert groups == []
    assert reason in skipped[""]
    assert [claimed[name] for name in "qkv"] == ["out"] * 3


def test_a_number_of_heads_baked_into_the_code_is_found_by_the_trial(networks, calls):
    module = networks.Block(fixed=True).eval()
    (alternatives,) = find_head_groups(module)[0]
    found = trial(module, alternatives, calls, {"forward": [{"x": torch.randn(2, 5, 32)}]})
    assert isinstance(found, str)
    assert "trial removal changed the function" in found
