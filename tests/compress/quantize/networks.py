"""Small networks that together hold every operator that can run in int8, and ways to make a model of one."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from calibration import CalibrationSet, open_set
from compress.model import Model
from compress.quantize import quantize
from compress.saving import export_model


class TwoReaders(nn.Module):
    """Two linear layers read ``x``; a third reads relu of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(x)))


class Everything(nn.Module):
    """A 2-D convolution, a 1-D one, linear layers on two and three axes, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.along = nn.Conv1d(8, 8, 3, padding=1)
        self.tokens = nn.Linear(8, 16)
        self.plain = nn.Linear(16, 16, bias=False)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 5))

    def forward(self, image: Tensor) -> Tensor:
        seen = torch.relu(self.stem(image)).flatten(2)  # batch, channels, pixels
        tokens = nn.functional.gelu(self.tokens(self.along(seen).transpose(1, 2)))
        return self.head(self.plain(tokens).mean(1))


class Normed(nn.Module):
    """A convolution and its batch normalisation, whose statistics are not those of a fresh one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.tensor([0.5, -1.0, 2.0, 0.0])
        self.norm.running_var = torch.tensor([4.0, 0.25, 1.0, 9.0])
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.norm.bias)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(image))).mean((2, 3))


class Tied(nn.Module):
    """An embedding whose table is the weight of the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.words = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.words.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(self.table(tokens))


SHAPES: dict[type[nn.Module], tuple[str, tuple[int, ...]]] = {
    TwoReaders: ("x", (4,)), Everything: ("image", (1, 4, 4)), Normed: ("image", (2, 5, 5)),
}  # fmt: skip


@functools.cache
def make(network: type[nn.Module]) -> Model:
    """Models are values: each network is exported once."""
    torch.manual_seed(0)
    name, shape = SHAPES[network]
    module = network()
    model = export_model(module, name=network.__name__, example={name: np.zeros((2, *shape), np.float32)})
    return dataclasses.replace(model, module=None)


@functools.cache
def quantized(network: type[nn.Module], scheme: str = "x86-vnni") -> Model:
    model = make(network)
    return quantize(model, samples(model), scheme=scheme).model


def samples(model: Model, count: int = 40, seed: int = 0) -> CalibrationSet:
    rng = np.random.default_rng(seed)
    (spec,) = model.inputs
    value = rng.normal(size=(count, *spec.shape[1:])).astype(np.float32)
    return open_set([{spec.name: value}], model.inputs, name="noise")
