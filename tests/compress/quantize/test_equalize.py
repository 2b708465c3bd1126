"""Cross-layer equalisation: ranges by hand, the function unchanged, and a depthwise network that needs it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Model
from compress.quantize import QuantizeConfig
from compress.quantize.equalize import equalize
from tests.compress.quantize.recovered import Named, int8, model_of, noise, same_function, sqnr


class Pair(nn.Module):
    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)
        self.between = between or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def test_the_ranges_by_hand() -> None:
    module = Pair()
    module.first.weight.data = torch.tensor([[8.0, -2.0], [0.5, -1.0], [3.0, 1.0]])         # 8, 1, 3
    module.first.bias.data = torch.tensor([4.0, 1.0, 0.0])
    module.second.weight.data = torch.tensor([[-2.0, 4.0, 3.0], [1.0, 1.0, 1.0]])           # 2, 4, 3
    model = model_of(module, 2)
    found, layers = equalize(model)
    assert layers == 1
    # sqrt(8 / 2) = 2, sqrt(1 / 4) = 1/2, sqrt(3 / 3) = 1
    np.testing.assert_allclose(found.weights["first.weight"], [[4, -1], [1, -2], [3, 1]], rtol=1e-6)
    np.testing.assert_allclose(found.weights["first.bias"], [2, 2, 0], rtol=1e-6)
    np.testing.assert_allclose(found.weights["second.weight"], [[-4, 2, 3], [2, 0.5, 1]], rtol=1e-6)
    same_function(found, model, noise(8, 2))


class Depthwise(nn.Module):
    """A convolution, one of single channels and one of all, with nothing that stops a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.depth(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.mix(seen)).mean((2, 3)))


def unequal() -> Model:
    """Channels between the layers differ in size by up to 3000; what reads them makes up for it."""
    torch.manual_seed(0)
    module = Depthwise()
    sizes = 10 ** torch.linspace(-2, 1.5, 8)
    with torch.no_grad():
        module.stem.weight *= sizes[:, None, None, None]
        module.stem.bias *= sizes
        module.depth.weight /= sizes[:, None, None, None]
        module.depth.weight *= sizes.flip(0)[:, None, None, None]
        module.depth.bias *= sizes.flip(0)
        module.mix.weight /= sizes.flip(0)[None, :, None, None]
    return model_of(module, 1, 6, 6)


def test_pairs_that_share_a_layer_converge_to_equal_ranges() -> None:
    model = unequal()
    found, layers = equalize(model)
    assert layers == 3
    weight = {name: found.weights[f"{name}.weight"].abs() for name in ("stem", "depth", "mix", "head")}
    np.testing.assert_allclose(weight["stem"].amax((1, 2, 3)), weight["depth"].amax((1, 2, 3)), rtol=0.01)
    np.testing.assert_allclose(weight["depth"].amax((1, 2, 3)), weight["mix"].amax((0, 2, 3)), rtol=0.01)
    np.testing.assert_allclose(weight["mix"].amax((1, 2, 3)), weight["head"].amax(0), rtol=0.01)
    same_function(found, model, noise(4, 1, 6, 6))


def test_it_recovers_what_unequal_channels_cost() -> None:
    model, x = unequal(), noise(32, 1, 6, 6)
    plain, found = (sqnr(model, x, int8(model, x, QuantizeConfig(ranges="minmax", equalize=flag)))
                    for flag in (False, True))  # fmt: skip
    assert plain < 25
    assert found > plain + 10, (plain, found)


def test_a_channel_of_zeros_stays() -> None:
    module = Pair()
    module.first.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    module.first.bias.data = torch.tensor([1.0, 0.0, 0.0])
    module.second.weight.data = torch.tensor([[1.0, 0.0, 4.0], [1.0, 0.0, 0.0]])
    model = model_of(module, 2)
    found, _ = equalize(model)
    np.testing.assert_allclose(found.weights["first.weight"], [[0, 0], [1, 0], [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.weights["first.bias"], [1, 0, 0], rtol=1e-6)
    same_function(found, model, noise(8, 2))


def test_what_clips_is_left_alone_and_so_is_a_norm() -> None:
    for module in (Pair(nn.ReLU6()), Pair(nn.GELU()), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))):
        model = model_of(Named(module), 2 if isinstance(module, Pair) else 3)
        assert equalize(model) == (model, 0)

