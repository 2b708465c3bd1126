from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.check import FunctionChangedError, compare, difference, prove, remove, restored, trial, zero
from compress.prune.groups import Edit, find_channel_groups


def first_group(networks, calls, x):
    module = networks.Perceptron().eval()
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": x}]})
    return module, groups[0]


def shifted(group, path):
    """The group with one layer's channels off by one: the kind of mistake the check is there for."""
    wrong = tuple(
        replace(edit, index=edit.index[1:] + edit.index[:1]) if edit.path == path else edit for edit in group.edits
    )
    return replace(group, edits=wrong)


def test_a_right_removal_equals_the_zeroed_original(networks, calls):
    x = torch.randn(4, 8)
    module, group = first_group(networks, calls, x)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert compare(module, {group.name: (group, (1, 5, 30))}, calls, {"forward": [{"x": x}]}) < 1e-6
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("path", ["first", "second"])
def test_a_group_with_wrong_channels_is_caught_and_named(networks, calls, path):
    x = torch.randn(4, 8)
    module, group = first_group(networks, calls, x)
    wrong = shifted(group, path)
    assert "trial removal changed the function" in trial(module, (wrong,), calls, {"forward": [{"x": x}]})
    with pytest.raises(CompressError, match=r"group 'first' would change the function .* output forward/0 moves by"):
        prove(module, {wrong.name: (wrong, (1, 5, 30))}, calls, {"forward": [{"x": x}]})


def test_a_group_that_lacks_a_layer_is_caught(networks, calls):
    x = torch.randn(4, 8)
    module, group = first_group(networks, calls, x)
    lacking = replace(group, edits=tuple(edit for edit in group.edits if edit.path != "second"))
    with pytest.raises(CompressError, match=r"group 'first' .* forward fails: RuntimeError"):
        prove(module, {lacking.name: (lacking, (0,))}, calls, {"forward": [{"x": x}]})
    assert module(x).shape == (4, 4)


def test_a_wrong_group_among_right_ones_is_the_one_named(networks, calls):
    x = torch.randn(4, 8)
    module = networks.Perceptron().eval()
    first, second = find_channel_groups(module, calls, {"forward": [{"x": x}]})[0]
    wrong = shifted(second, "last")
    with pytest.raises(CompressError, match="group 'second'"):
        prove(module, {"first": (first, (0, 3)), "second": (wrong, (2, 7))}, calls, {"forward": [{"x": x}]})


def test_heads_removed_without_their_number_are_caught(networks, calls):
    module = networks.Attention().eval()
    index = tuple(tuple(range(8 * head, 8 * head + 8)) for head in range(4))
    edits = (*(Edit(path=path, role="out", index=index) for path in "qkv"), Edit(path="out", role="in", index=index))
    from compress.prune.groups import Group

    silent = Group(name="attention", kind="heads", units=4, edits=edits)  # what Torch-Pruning does
    with pytest.raises(CompressError, match="'attention'"):
        prove(module, {"attention": (silent, (0, 2))}, calls, {"forward": [{"x": torch.randn(2, 5, 32)}]})
    right = replace(silent, attributes={"": {"heads": 1}})
    assert prove(module, {"attention": (right, (0, 2))}, calls, {"forward": [{"x": torch.randn(2, 5, 32)}]}) < 1e-6
    assert remove(module, {"attention": (right, (0, 2))}) == {"": {"heads": 2}}
    assert module.heads == 2


def test_zero_silences_the_consumers_only(networks, calls):
    module, group = first_group(networks, calls, torch.randn(4, 8))
    rows = module.first.weight.detach().clone()
    with restored(module, [group]):
        zero(module, {group.name: (group, (2, 4))})
        assert torch.equal(module.first.weight, rows)
        assert not module.second.weight[:, [2, 4]].any()
        assert module.second.weight[:, [3]].all()
    assert module.second.weight[:, [2, 4]].all()


def test_a_channel_that_the_network_mixes_is_not_prunable(networks, calls):
    module = networks.Softmax().eval()
    x = torch.randn(4, 8)
    groups, _ = find_channel_groups(module, calls, {"forward": [{"x": x}]})
    assert "trial removal" in trial(module, groups, calls, {"forward": [{"x": x}]})


def test_one_unit_cannot_go(calls):
    module = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    one = Edit(path="0", role="out", index=((0,),)), Edit(path="1", role="in", index=((0,),))
    from compress.prune.groups import Group

    assert trial(module, (Group(name="0", kind="channels", units=1, edits=one),), calls, {}) == "it has one unit"


def test_difference_compares_shapes_values_and_finiteness():
    with pytest.raises(FunctionChangedError, match=r"output a has shape \(2,\) instead of \(3,\)"):
        difference({"a": torch.zeros(3)}, {"a": torch.zeros(2)})
    with pytest.raises(FunctionChangedError, match="moves by nan"):
        difference({"a": torch.ones(1)}, {"a": torch.full((1,), torch.nan)})
    with pytest.raises(CompressError, match="output a of the original is not finite"):
        difference({"a": torch.full((1,), torch.inf)}, {"a": torch.zeros(1)})
    assert difference(
        {"a": torch.tensor([2.0]), "n": torch.tensor([1])}, {"a": torch.tensor([2.0001]), "n": torch.tensor([2])}
    ) == pytest.approx(1e-4, rel=1e-2)
