import numpy as np
import pytest
import torch
from torch import nn

from compress.distill.averaging import Average


def test_the_average_by_hand_and_in_the_weights_place():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average({"weight": weight}, 0.15)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0)):
        weight.data.fill_(value)
        average.update(step)
        decay = min(0.15, (1 + step) / (10 + step))     # 0.1, then 0.15 in place of 2/11
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average.values["weight"], [expected], rtol=1e-6)
    with average.applied():
        np.testing.assert_allclose(weight.item(), expected, rtol=1e-6)
    assert weight.item() == 4.0


def test_the_weights_come_back_behind_an_error():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average({"weight": weight}, 0.9)
    weight.data.fill_(3.0)

    def score():
        with average.applied():
            assert weight.item() == 1.0
            raise RuntimeError("scoring failed")

    with pytest.raises(RuntimeError, match="scoring failed"):
        score()
    assert weight.item() == 3.0
