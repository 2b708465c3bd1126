"""Products in bf16: what computes in it, and that a recurrent layer does not."""

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill
from compress.distill.precision import computing
from compress.model import Input
from compress.saving import export_model
from runtimes.spec import Dim


def test_products_are_in_bf16_and_only_inside():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with computing("bf16"):
        assert layer(x).dtype == torch.bfloat16
    with computing("fp32"):
        assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_network_trains_in_bf16(kind):
    class Heard(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.back, self.head = nn.Linear(4, 6), kind(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, waves):
            return self.head(self.back(self.front(waves))[0].mean(1))

    def model(seed):
        torch.manual_seed(seed)
        inputs = {"waves": Input(dims=("batch", Dim("length", 1, 7, 9)))}
        return export_model(Heard(), name="heard", example={"waves": np.ones((2, 7, 4), np.float32)}, inputs=inputs)

    teacher, student = model(0), model(1)
    waves = np.random.default_rng(0).normal(size=(96, 7, 4)).astype(np.float32)
    config = DistillConfig(epochs=15, batch_size=32, learning_rate=2e-2, precision="bf16")
    result = distill(student, teacher, open_set([{"waves": waves}], teacher.inputs), config=config)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 4
    assert not torch.equal(result.model.weights["back.weight_hh_l0"], student.weights["back.weight_hh_l0"])
