"""Tensors of branches that were removed: zeros that nobody stores, and which come back with the channel map."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.absent import absent, apply_absent, is_absent, silence, take_out
from compress.prune.channels import is_norm


def test_what_is_taken_out_is_zero_and_in_no_state_dict(networks: ModuleType) -> None:
    block, x = networks.Block().eval(), torch.randn(2, 5, 32)
    names = [name for name in block.state_dict() if name.startswith(("norm2", "up", "down"))]
    take_out(block, names)
    torch.testing.assert_close(block(x), x + block.attention(block.norm1(x)))
    assert block.state_dict().keys() & {*names} == set()
    assert not {name for name, _ in block.named_parameters()} & {*names}
    assert block.up.weight.untyped_storage().nbytes() == 4   # one number
    assert absent(block) == {name: tuple(networks.Block().state_dict()[name].shape) for name in sorted(
        names, key=["norm2.bias", "norm2.weight", "up.bias", "up.weight", "down.bias", "down.weight"].index)}
    assert is_absent(block.up)
    assert is_absent(block.up, "bias")
    assert not is_absent(block.norm1)
    assert is_norm(block.norm2)                              # a narrower stream has to find it


def test_the_map_takes_out_the_same_of_a_fresh_network(networks: ModuleType) -> None:
    block, fresh, x = networks.Block().eval(), networks.Block().eval(), torch.randn(2, 5, 32)
    take_out(block, ["up.weight", "up.bias", "down.weight", "down.bias", "norm2.weight", "norm2.bias"])
    apply_absent(fresh, {name: list(shape) for name, shape in absent(block).items()})
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(fresh(x), block(x))
    narrower = networks.Block()
    apply_absent(narrower, {"up.weight": [40, 32], "up.bias": [40], "down.weight": [32, 40]})
    assert (narrower.up.out_features, narrower.down.in_features) == (40, 40)


@pytest.mark.parametrize(("shapes", "message"), [
    ({"gone.weight": [3]}, "takes out 'gone.weight', which the factory's module does not have"),
    ({"up.weight": [65, 32]}, r"takes out 'up.weight' of shape \[65, 32\], and the factory's module has \(64, 32\)"),
    ({"up.weight": [64]}, r"takes out 'up.weight' of shape \[64\]"),
    ({"up.weight": [64, 3.5]}, "takes out 'up.weight' of shape"),
    ({"up.weight": "ab"}, "takes out 'up.weight' of shape ab"),
])
def test_a_map_of_another_network_is_refused(networks: ModuleType, shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        apply_absent(networks.Block(), shapes)


def test_silence_makes_a_layers_result_zero() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    holder, x = nn.ModuleDict({"attention": module}), torch.randn(2, 5, 8)
    _, expected = module(x, x, x)
    silence(holder, ["attention"])
    result, weights = module(x, x, x)
    assert not result.any()
    assert torch.equal(weights, expected)                    # what else it gives is left
