"""Weights on their grid: the int8 program finds the integers that were chosen, in every scheme."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver

from compress.model import Model
from compress.quantize import quantize
from compress.quantize.grid import largest, nearest, on_grid, steps
from compress.weights import with_weights
from tests.compress.quantize.recovered import Named, data_of, integers, model_of, noise


def test_steps_and_integers_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.504, 0.0], [0.1, -0.2, 0.05], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(steps(weight, 127)[:2], [[0.01], [0.2 / 127]], rtol=1e-6)
    assert nearest(weight, 127).tolist() == [[127, -50, 0], [64, -127, 32], [0, 0, 0]]    # 63.5 and 31.75
    assert largest(weight).tolist() == [[True, False, False], [False, True, False], [True, True, True]]
    found = on_grid(torch.tensor([[127.0, -51.0, 1.0], [0.0, -127.0, 5.0], [0.0, 0.0, 0.0]]), weight, 127)
    np.testing.assert_allclose(found, [[1.27, -0.51, 0.01], [0, -0.2, 1 / 127], [0, 0, 0]], rtol=1e-5)
    assert found[0, 0] == weight[0, 0]      # to the bit: it gives the step


def quantizer(high: int) -> nn.Module:
    """What :mod:`compress.quantize.annotate` puts on a weight."""
    observer = MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0, ch_axis=0)
    return FakeQuantize(observer=observer, dtype=torch.int8, quant_min=-high, quant_max=high,
                        qscheme=torch.per_channel_symmetric, ch_axis=0)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), high=st.sampled_from([127, 63, 7]), size=st.floats(-8, 8))
def test_a_quantizer_finds_the_integers_that_were_chosen(seed: int, high: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy((rng.normal(size=(4, 9)) * 10**size).astype(np.float32))
    plain = nearest(weight, high)
    moved = (plain + torch.from_numpy(rng.integers(-1, 2, plain.shape))).clamp(-high, high)
    chosen = torch.where(largest(weight), plain, moved.float())
    stored = on_grid(chosen, weight, high)
    fake = quantizer(high)
    value = fake(stored)
    scale, _ = fake.calculate_qparams()
    np.testing.assert_array_equal((value / scale[:, None]).round(), chosen)


@pytest.mark.parametrize(("scheme", "high"), [("x86-vnni", 127), ("x86", 63)])
def test_the_int8_program_has_them(scheme: str, high: int) -> None:
    torch.manual_seed(0)
    model: Model = model_of(Named(nn.Linear(6, 5)), 6)
    name = next(name for name in model.weights if name.endswith("weight"))
    weight = model.weights[name].detach()
    chosen = torch.where(largest(weight), nearest(weight, high), (weight / steps(weight, high)).ceil())
    changed = with_weights(model, {name: on_grid(chosen, weight, high)})
    found = quantize(changed, data_of(model, noise(8, 6)), scheme=scheme).model
    np.testing.assert_array_equal(integers(found, name, high), chosen)
