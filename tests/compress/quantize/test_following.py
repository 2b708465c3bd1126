"""Which channels can be scaled: followed through moves, joins, attention; stopped by what is not homogeneous."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.model import Graph, Model
from compress.program import model_runner
from compress.quantize.following import find_scalable
from compress.quantize.scaling import Scalable
from compress.saving import export_model
from tests.compress.quantize.recovered import model_of, noise, same_function


class Pair(nn.Module):
    """Two linear layers with ``between`` in the middle."""

    def __init__(self, between: nn.Module | None = None, wider: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6 * wider, 3)
        self.between = between or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Apply(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


def free(found: Scalable) -> dict[str, int]:
    """Weight -> how many of its channels can be scaled, where any can."""
    counts = {source.weight: int(found.free[source.channels].sum()) for source in found.sources}
    return {name: count for name, count in counts.items() if count}


def scaled_anyhow(model: Model) -> Model:
    """``model`` with every free channel scaled by another factor."""
    found = find_scalable(model)
    return found.rescaled(model, torch.from_numpy(np.random.default_rng(3).uniform(0.2, 5.0, len(found.free))))


@pytest.mark.parametrize("between", [
    nn.ReLU(), nn.Identity(), nn.LeakyReLU(), nn.Dropout(), Apply(lambda x: -x.unflatten(1, (2, 3)).transpose(1, 2)
                                                                  .reshape(-1, 6)),
    Apply(lambda x: torch.cat([x[:, 3:], x[:, :3]], 1) * 2), Apply(lambda x: x.clamp(min=0)),
    Apply(lambda x: x[:, None].expand(-1, 3, -1).mean(1)), Apply(lambda x: torch.relu_(x.clone())),
])  # fmt: skip
def test_a_factor_goes_through(between: nn.Module) -> None:
    torch.manual_seed(0)
    model = model_of(Pair(between), 4)
    assert free(find_scalable(model)) == {"first.weight": 6}
    same_function(scaled_anyhow(model), model, noise(5, 4))


@pytest.mark.parametrize("between", [
    nn.GELU(), nn.Hardtanh(), Apply(lambda x: x.clamp(max=1.0)), Apply(lambda x: x.clamp(0, x.abs().max())),
    Apply(lambda x: x + 1), Apply(lambda x: x * x), Apply(lambda x: 1 / x), Apply(lambda x: x + x.flip(1)),
    nn.LayerNorm(6, elementwise_affine=False), Apply(lambda x: functional.softmax(x, 1)), Apply(lambda x: x.cumsum(1)),
])  # fmt: skip
def test_a_factor_does_not_go_through(between: nn.Module) -> None:
    assert not free(find_scalable(model_of(Pair(between), 4)))


@pytest.mark.parametrize("between", [
    nn.ReLU6(), nn.Hardtanh(0.0, 6.0), Apply(lambda x: functional.relu6(x[:, :, None])[:, :, 0]),
    Apply(lambda x: x.clamp(0, 6)), Apply(lambda x: functional.hardtanh(x.clone(), 0.0, 6.0, inplace=True)),
])  # fmt: skip
def test_a_factor_goes_through_what_cuts_no_channel(between: nn.Module) -> None:
    torch.manual_seed(0)
    model = model_of(Pair(between), 4)
    found = find_scalable(model)
    assert free(found) == {"first.weight": 6}
    (clip,) = found.clips
    assert clip.channels.tolist() == [0, 1, 2, 3, 4, 5]
    assert clip.high == 6.0
    same_function(scaled_anyhow(model), model, noise(5, 4))     # at most 5 times what is below 1


def test_one_channel_that_is_cut_stays() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 1), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(functional.relu6(self.first(x)))

    assert not free(find_scalable(model_of(One(), 4)))


def test_channels_that_reach_an_output_or_the_sum_of_their_like_stay() -> None:
    class Told(Pair):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            seen = torch.relu(self.first(x))
            return {"output": self.second(seen), "some": seen[:, :2]}

    class Summed(Pair):
        def forward(self, x: Tensor) -> Tensor:
            seen = self.first(x)
            return self.second(seen[:, :, None].sum(2) + seen.sum(1, keepdim=True))

    model = model_of(Told(), 4)
    assert free(find_scalable(model)) == {"first.weight": 4}
    wanted, found = (model_runner(one)({"x": noise(5, 4)}) for one in (model, scaled_anyhow(model)))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    assert not free(find_scalable(model_of(Summed(), 4)))


class Picture(nn.Module):
    """Convolutions, one of single channels and one of two groups, pooled and flattened, beside a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.mix, self.norm = nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6)
        self.other, self.head = nn.Linear(3, 2), nn.Linear(6 * 4 + 2, 3)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.depth(torch.relu(self.stem(x))))
        places = self.pool(functional.max_pool2d(torch.relu(self.norm(self.mix(seen))), 2)).flatten(1)
        return self.head(torch.cat([places, self.other(x[:, 0, 0, :3])], 1))


def test_convolutions_pools_and_several_inputs_of_a_channel() -> None:
    torch.manual_seed(0)
    model = model_of(Picture(), 2, 8, 8)
    found = find_scalable(model)
    # the norm is not folded here: it is what makes the channels that the head reads, four places of each
    assert free(found) == {"stem.weight": 4, "depth.weight": 4, "norm.weight": 6, "other.weight": 2}
    (head,) = [reader for reader in found.readers if reader.weight == "head.weight"]
    first = next(source.first for source in found.sources if source.weight == "norm.weight")
    assert head.channels[:24].tolist() == [first + i // 4 for i in range(24)]
    same_function(scaled_anyhow(model), model, noise(3, 2, 8, 8))


class Attending(nn.Module):
    """Queries, keys and values from one norm, and a norm written out that a linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.packed, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.root, self.up = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.packed(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        return self.up(self.root * (x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6)))


def test_attention_mixes_rows_of_values_and_not_of_queries_and_keys() -> None:
    torch.manual_seed(0)
    model = model_of(Attending(), 5, 8)
    assert free(find_scalable(model)) == {"norm.weight": 8, "packed.weight": 8, "root": 8}   # of 24: the values
    same_function(scaled_anyhow(model), model, noise(3, 5, 8))


class Towers(nn.Module):
    """Two towers with one layer in common, behind norms of their own or behind the same."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.left, self.right, self.shared, self.same = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 3), same
        nn.init.uniform_(self.left.weight, 0.5, 2.0)

    def one(self, x: Tensor) -> Tensor:
        return self.shared(self.left(x))

    def other(self, x: Tensor) -> Tensor:
        return self.shared(self.left(2 * x) if self.same else self.right(x))


def towers(*, same: bool) -> Model:
    return export_model(Towers(same=same).eval(), name="towers", example={"x": noise(2, 4)},
                        graphs={"one": Graph("one", ("x",)), "other": Graph("other", ("x",))})  # fmt: skip


def test_a_layer_of_two_towers_is_scaled_once_or_not_at_all() -> None:
    assert not free(find_scalable(towers(same=False)))     # what scales one tower's norm would change the other
    model = towers(same=True)
    assert free(find_scalable(model)) == {"left.weight": 4}
    wanted, found = (model_runner(one)({"x": noise(3, 4)}) for one in (model, scaled_anyhow(model)))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    assert not torch.allclose(scaled_anyhow(model).weights["left.weight"], model.weights["left.weight"])


def test_a_weight_that_is_a_table_too_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm, self.words = nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 10, bias=False)
            self.words.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.words(self.norm(self.table(x)))

    model = export_model(Tied().eval(), name="tied", example={"x": np.zeros((2, 3), np.int64)})
    assert not free(find_scalable(model))


def test_a_bias_of_two_layers_and_a_computed_one_stay() -> None:
    class Lent(Pair):
        def __init__(self, computed: bool) -> None:
            super().__init__()
            self.third, self.computed = nn.Linear(4, 6), computed
            self.third.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            if self.computed:
                return self.second(torch.relu(functional.linear(x, self.first.weight, self.first.bias * 2)))
            return self.second(torch.relu(self.first(x))) + self.third(x).sum(1, keepdim=True)

    assert not free(find_scalable(model_of(Lent(computed=True), 4)))
    assert not free(find_scalable(model_of(Lent(computed=False), 4)))
