"""A two-input network of two encoders and a head, small enough to train in a moment."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import CalibrationSet, open_set
from compress.model import Model
from compress.saving import export_model


class Tiny(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        self.heard = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, 8), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, picture: Tensor, sound: Tensor) -> Tensor:
        return self.head(torch.cat([self.seen(picture), self.heard(sound)], dim=1))


Build = Callable[..., Model]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def build() -> Build:
    """Models are values, so one that was exported once serves every test that asks for the same."""

    @functools.cache
    def make(seed: int = 0, *, width: int = 8, classes: int = 3, name: str = "tiny") -> Model:
        torch.manual_seed(seed)
        example = {"picture": np.zeros((1, 6), np.float32), "sound": np.zeros((1, 4), np.float32)}
        model = export_model(Tiny(width, classes), name=name, example=example)
        return dataclasses.replace(model, module=None)

    return make


@pytest.fixture
def perturb() -> Callable[[Model, float], Model]:
    from compress.weights import with_weights

    def noisy(model: Model, size: float) -> Model:
        noise = torch.Generator().manual_seed(1)
        weights = model.weights.items()
        return with_weights(
            model, {key: value + size * torch.randn(value.shape, generator=noise) for key, value in weights}
        )

    return noisy


@pytest.fixture
def feeds() -> Callable[[Model], CalibrationSet]:
    """A set of 200 samples whose labels are the answers of the model given."""
    from compress.program import run_program

    def make(model: Model, count: int = 200, seed: int = 0) -> CalibrationSet:
        rng = np.random.default_rng(seed)
        feed = {
            "picture": rng.normal(size=(count, 6)).astype(np.float32),
            "sound": rng.normal(size=(count, 4)).astype(np.float32),
        }
        parts = [{key: value[i : i + 50] for key, value in feed.items()} for i in range(0, count, 50)]
        labels = [run_program(model, part)["output"].argmax(-1) for part in parts]
        sets = [{**part, "target": label} for part, label in zip(parts, labels, strict=True)]
        return open_set(sets, model.inputs, name="toys")

    return make
