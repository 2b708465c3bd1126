"""Learned rounding: each weight goes up or down, blocks come nearer to float, and the int8 program has the choice."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.model import Model
from compress.quantize import rounding
from compress.quantize.grid import largest, nearest, steps
from compress.quantize.rounding import learn_rounding
from compress.weights import with_weights
from tests.compress.quantize.recovered import Named, feeds, int8, integers, model_of, noise, sqnr
from tests.compress.quantize.test_gptq import correlated


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ITERATIONS", 200)


def layer() -> tuple[Model, np.ndarray]:
    torch.manual_seed(0)
    return model_of(Named(nn.Linear(40, 16)), 40), correlated(40, 64)


def test_a_layer_comes_nearer_with_weights_that_went_up_or_down() -> None:
    model, x = layer()
    plain = int8(model, x, scheme="x86")
    found, count = learn_rounding(plain, feeds(plain, x))
    assert count == 1
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 1
    weight = model.weights["module.weight"].detach()
    chosen = (found.weights["module.weight"] / steps(weight, 63)).round()
    exact = weight / steps(weight, 63)
    assert bool(((chosen == exact.floor()) | (chosen == exact.ceil()) | largest(weight)).all())
    assert 0.02 < float((chosen != nearest(weight, 63)).float().mean()) < 0.9
    np.testing.assert_array_equal(integers(found, "module.weight", 63), chosen)
    assert found.quantization == plain.quantization
    again, _ = learn_rounding(plain, feeds(plain, x))
    np.testing.assert_array_equal(again.weights["module.weight"], found.weights["module.weight"])


class Residual(nn.Module):
    """A convolution, a residual block of two layers, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 8, 3), nn.Linear(8, 4)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.conv(x).transpose(1, 2)
        return self.head(seen + self.down(nn.functional.gelu(self.up(seen))))


def test_a_block_is_learned_as_a_whole_and_told_of() -> None:
    torch.manual_seed(0)
    model, x = model_of(Residual(), 2, 12), noise(48, 2, 12)
    plain = int8(model, x, scheme="x86")
    told: list[tuple[int, int]] = []
    parts: list[int] = []
    learn = rounding.learn

    def counted(part: object, choices: dict[str, object]) -> bool:
        parts.append(len(choices))
        return learn(part, choices)  # type: ignore[arg-type]

    with mock.patch.object(rounding, "learn", counted):
        found, count = learn_rounding(plain, feeds(plain, x), lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (3, 4), (4, 4)]
    assert parts == [1, 2, 1]
    assert count >= 2       # those of the block; of the convolution, with six inputs, and the head nearest may be best
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 0.4


def test_what_does_not_err_is_left_alone() -> None:
    model, _ = layer()
    x = np.zeros((16, 40), np.float32)
    plain = int8(model, x)
    found, count = learn_rounding(plain, feeds(plain, x))
    assert count == 0
    assert torch.equal(found.weights["module.weight"], model.weights["module.weight"])


def test_rounding_that_is_no_better_than_nearest_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "RATE", 1e3)      # every weight ends where the first steps throw it
    model, x = layer()
    plain = int8(model, x)
    found, count = learn_rounding(plain, feeds(plain, x))
    assert count == 0
    assert torch.equal(found.weights["module.weight"], model.weights["module.weight"])


def test_a_channel_of_zeros_and_an_enormous_weight_keep_their_integers() -> None:
    model, x = layer()
    weight = model.weights["module.weight"].detach().clone()
    weight[3], weight[5, 7] = 0.0, 1e6
    plain = int8(with_weights(model, {"module.weight": weight}), x)
    found, _ = learn_rounding(plain, feeds(plain, x))
    assert not found.weights["module.weight"][3].any()
    assert float(found.weights["module.weight"][5, 7]) == 1e6
    assert bool(found.weights["module.weight"].isfinite().all())
