from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.channels import apply_channels, cut, parameter_axis


def test_cut_linear_keeps_the_other_rows_and_columns():
    layer = nn.Linear(3, 4)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    cut(layer, "out", [1])
    cut(layer, "in", [0, 2])
    assert torch.equal(layer.weight, weight[[0, 2, 3]][:, [1]])
    assert torch.equal(layer.bias, bias[[0, 2, 3]])
    assert (layer.in_features, layer.out_features) == (1, 3)


def test_cutting_inputs_leaves_the_bias():
    layer = nn.Linear(4, 4)
    bias = layer.bias.detach().clone()
    cut(layer, "in", [1])
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize(
    ("layer", "role", "shape", "numbers"),
    [
        (nn.Conv2d(4, 6, 3), "out", (4, 4, 3, 3), (4, 4, 1)),
        (nn.Conv2d(4, 6, 3), "in", (6, 2, 3, 3), (2, 6, 1)),
        (nn.ConvTranspose2d(4, 6, 3), "out", (4, 4, 3, 3), (4, 4, 1)),
        (nn.ConvTranspose2d(4, 6, 3), "in", (2, 6, 3, 3), (2, 6, 1)),
        (nn.Conv1d(4, 4, 3, groups=4), "out", (2, 1, 3), (2, 2, 2)),
    ],
)
def test_cut_convolutions(layer, role, shape, numbers):
    cut(layer, role, [0, 3])
    assert tuple(layer.weight.shape) == shape
    assert (layer.in_channels, layer.out_channels, layer.groups) == numbers
    assert len(layer.bias) == layer.out_channels


def test_cut_batch_norm():
    layer = nn.BatchNorm1d(4)
    layer.running_mean.copy_(torch.arange(4.0))
    cut(layer, "out", [1, 2])
    assert layer.num_features == 2
    assert layer.running_mean.tolist() == [0, 3]
    assert layer(torch.zeros(3, 2)).shape == (3, 2)


def test_apply_channels_gives_a_fresh_module_the_pruned_shapes(networks):
    small = networks.Block()
    small.attention.heads = 2
    for layer in (small.attention.q, small.attention.k, small.attention.v):
        cut(layer, "out", range(16))
    cut(small.attention.out, "in", range(16))
    cut(small.up, "out", range(10))
    cut(small.down, "in", range(10))
    fresh = networks.Block()
    apply_channels(fresh, {"attributes": {"attention": {"heads": 2}}}, small.state_dict())
    fresh.load_state_dict(small.state_dict())
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(fresh(x), small(x), rtol=0, atol=0)
    assert (fresh.up.out_features, fresh.down.in_features) == (54, 54)


def test_apply_channels_rewrites_an_embedding():
    module = nn.Sequential(nn.Embedding(10, 8))
    apply_channels(module, {}, {"0.weight": torch.zeros(7, 6)})
    assert (module[0].num_embeddings, module[0].embedding_dim) == (7, 6)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"nowhere": {"heads": 2}}, "'nowhere', which the factory's module does not have"),
        ({"attention": {"nothing": 2}}, "attention.nothing to 2"),
        ({"attention": {"heads": "2"}}, "attention.heads to '2'"),
        ({"attention": {"training": True}}, "attention.training to True"),
        ({"attention": {"forward": 1}}, "attention.forward to 1"),
    ],
)
def test_a_channel_map_may_only_replace_numbers(networks, attributes, message):
    with pytest.raises(CompressError, match=message):
        apply_channels(networks.Block(), {"attributes": attributes}, {})


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (4, 3, 1)])
def test_a_weight_larger_than_the_factorys_is_refused(shape):
    with pytest.raises(CompressError, match=r"weight '0.weight' has shape .* another factory"):
        apply_channels(nn.Sequential(nn.Linear(3, 4)), {}, {"0.weight": torch.zeros(shape)})


@pytest.mark.parametrize(("shape", "axis"), [
    ((4,), 0), ((4, 1, 1), 0), ((1, 4, 1, 1), 1), ((1, 1, 1, 4), 3), ((1, 4), 1), ((7, 4), 1), ((1, 9, 4), 2),
    ((1, 4, 8, 8), 1),
])
def test_the_channels_of_a_parameter(shape, axis):
    assert parameter_axis(torch.zeros(shape)) == axis
