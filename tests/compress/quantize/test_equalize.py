"""Equalisation: scales by hand, the function unchanged, and depthwise networks that need it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.model import Model
from compress.quantize import QuantizeConfig
from compress.quantize.equalize import equalize
from runtimes.spec import Feed
from tests.compress.quantize.recovered import Named, int8, model_of, noise, same_function, sqnr


def of(x: np.ndarray) -> list[tuple[str, Feed]]:
    return [("forward", {"x": np.asarray(x, np.float32)})]


class Pair(nn.Module):
    """Four channels of 1, 4, 16 and 256 times the input, which two outputs read with as much less of each."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 2)
        self.between = between or nn.ReLU()
        self.first.weight.data = torch.tensor([[1.0], [4.0], [16.0], [256.0]])
        self.first.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])
        self.second.weight.data = torch.tensor([[0.25, 1.0, 0.25, 0.25], [1.0, 0.5, 0.0, -0.25]])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))  # type: ignore[no-any-return]


def test_scales_by_hand() -> None:
    model = model_of(Pair(), 1)
    found, layers = equalize(model, of([[1.0], [-1.0]]))
    assert layers == 1
    # activations 2, 4, 16, 256, weights 1, 1, 1/4, 1/4: roots of their quotients 1.41, 2, 8, 32, and 256 / 32 = 8 with
    # them; times 1 / 32, which leaves 256 as it is
    np.testing.assert_allclose(found.weights["first.weight"].flatten(), [1 / (2**0.5 / 32), 64, 64, 256], rtol=1e-6)
    np.testing.assert_allclose(found.weights["first.bias"], [1 / (2**0.5 / 32), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.weights["second.weight"][0], [0.25 * 2**0.5 / 32, 1 / 16, 1 / 16, 0.25], rtol=1e-6)
    same_function(found, model, noise(8, 1))


def test_what_gains_less_than_a_bit_stays() -> None:
    module = Pair()
    module.first.weight.data = torch.tensor([[1.0], [1.5], [2.0], [2.5]])
    model = model_of(module, 1)
    assert equalize(model, of([[1.0]])) == (model, 0)


def test_what_is_cut_is_not_cut_more() -> None:
    module = Pair(nn.ReLU6())
    module.first.weight.data = torch.tensor([[0.01], [0.02], [5.0], [7.0]])
    module.first.bias.data.zero_()
    model = model_of(module, 1)
    found, layers = equalize(model, of([[1.0]]))
    assert layers == 1
    # of 0.01, 0.02, 5 and 6: the first could be larger than sqrt(w_0 / x_0) makes it, the third comes within 1.25 of 6
    made = found.weights["first.weight"].flatten().numpy()
    assert made[2:].tolist() == [5.0, 7.0]
    assert 0.3 < made[0] < 6 / 1.25
    assert 0.3 < made[1] < 6 / 1.25
    same_function(found, model, np.linspace(-2, 1.25, 9, dtype=np.float32)[:, None])


class Depthwise(nn.Module):
    """A convolution, one of single channels and one of all."""

    def __init__(self, between: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.between = between()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.between(self.depth(self.between(self.stem(x))))
        return self.head(torch.relu(self.mix(seen)).mean((2, 3)))  # type: ignore[no-any-return]


def unequal(between: type[nn.Module] = nn.ReLU) -> Model:
    """Channels between the layers differ in size by up to 3000; what reads them makes up for it."""
    torch.manual_seed(0)
    module = Depthwise(between)
    sizes = 10 ** torch.linspace(-3, 0.5, 8)
    with torch.no_grad():
        module.stem.weight *= sizes[:, None, None, None]
        module.stem.bias *= sizes
        module.depth.weight /= sizes[:, None, None, None]
        module.depth.weight *= sizes.flip(0)[:, None, None, None]
        module.depth.bias *= sizes.flip(0)
        module.mix.weight /= sizes.flip(0)[None, :, None, None]
    return model_of(module, 1, 6, 6)


@pytest.mark.parametrize("between", [nn.ReLU, nn.ReLU6])
def test_it_recovers_what_unequal_channels_cost(between: type[nn.Module]) -> None:
    model, x = unequal(between), noise(32, 1, 6, 6)
    found, layers = equalize(model, of(x))
    assert layers == 2
    same_function(found, model, x)
    plain, default = (sqnr(model, x, int8(model, x, config)) for config in (QuantizeConfig(equalize=False),
                                                                           QuantizeConfig()))  # fmt: skip
    assert plain < 25
    assert default > plain + 10, (plain, default)


def test_channels_that_one_kernel_reads_get_one_size() -> None:
    model, x = unequal(), noise(32, 1, 6, 6)
    found, _ = equalize(model, of(x))
    seen = torch.conv2d(torch.from_numpy(x), found.weights["stem.weight"], found.weights["stem.bias"], padding=1)
    np.testing.assert_allclose(seen.relu().amax((0, 2, 3)), float(seen.relu().max()), rtol=1e-5)


def test_a_channel_of_zeros_stays_and_so_does_one_that_is_not_finite() -> None:
    module = Pair()
    module.first.weight.data[0], module.first.bias.data[0] = 0.0, 0.0
    module.second.weight.data[:, 1:3] = torch.tensor([0.0, 4.0])
    model = model_of(module, 1)
    found, layers = equalize(model, of([[1.0]]))
    assert layers == 1
    assert found.weights["first.weight"].flatten().tolist()[:2] == [0.0, 4.0]
    same_function(found, model, noise(8, 1))
    for value in (3e38, math.nan):
        assert equalize(model, of([[value]])) == (model, 0)
    with pytest.raises(CompressError, match="is not finite on calibration set"):
        int8(model, np.array([[1.0], [3e38]]), QuantizeConfig())


def test_without_relu_nothing_is_run() -> None:
    def never() -> Iterator[tuple[str, Feed]]:
        raise AssertionError("a sample was asked for")
        yield

    for module in (Pair(nn.GELU()), Pair(nn.Identity()), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)),
                   nn.Sequential(nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))):  # fmt: skip
        model = model_of(Named(module), 1 if isinstance(module, Pair) else 3)
        assert equalize(model, never()) == (model, 0)
