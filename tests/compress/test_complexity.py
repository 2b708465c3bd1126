from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compress.complexity import count, count_operations
from compress.errors import CompressError
from compress.model import Input
from compress.saving import export_model
from runtimes.spec import Dim


class Small(nn.Module):
    """Convolution, batch norm, attention over a dynamic length, a product of activations, a shared linear layer."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.read = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, image, text):
        x = self.read(text).unflatten(-1, (2, 4)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(x, x, x).transpose(1, 2).flatten(2)
        pooled = self.seen(image).flatten(2)
        return (
            self.head(y).sum(1)
            + self.head(y).mean(1)
            + torch.matmul(pooled, pooled.transpose(1, 2)).mean() * self.scale[0]
        )


@pytest.fixture(scope="module")
def small():
    example = {"image": np.zeros((2, 1, 5, 5), np.float32), "text": np.zeros((2, 3, 6), np.float32)}
    return export_model(
        Small().eval(),
        name="small",
        example=example,
        components={"eye": "seen", "reader": "read"},
        inputs={"text": Input(modality="text", dims=("batch", Dim("length", 1, 7, 16)))},
    )


def by_hand(length, batch=1):
    return {
        "seen.0": batch * 25 * 9 * 4,
        "read": batch * length * 6 * 8,
        "head": 2 * batch * length * 8 * 2,
        # attention: 2 heads of 4, queries x keys twice; activations: 4 x 25 times 25 x 4
        "": batch * 2 * length * length * (4 + 4) + batch * 4 * 25 * 4,
    }


@pytest.mark.parametrize(
    ("sizes", "length", "batch"), [(None, 7, 1), ({"length": 3}, 3, 1), ({"length": 3, "batch": 5}, 3, 5)]
)
def test_macs_by_hand(small, sizes, length, batch):
    complexity = count(small.graph.program, small, sizes)
    macs = {path: n for path, n in complexity.modules.items() if n}
    assert macs == by_hand(length, batch)
    assert complexity.total.macs == sum(macs.values())


def test_components_sum_to_the_whole(small):
    complexity = count(small.graph.program, small)
    hand = by_hand(7)
    eye, reader, other = (complexity.components[name] for name in ("eye", "reader", "other"))
    assert (eye.macs, reader.macs, other.macs) == (hand["seen.0"], hand["read"], hand["head"] + hand[""])
    assert (eye.params, reader.params, other.params) == (4 * 9 + 4 + 8, 6 * 8 + 8, 8 * 2 + 2 + 3)
    assert complexity.total.params == eye.params + reader.params + other.params
    assert reader.size_bytes == 4 * reader.params


def test_parameters_are_counted_once_at_their_first_reader(small):
    operations = count(small.graph.program, small).operations
    heads = [operation.params for operation in operations if operation.module == "head" and "linear" in operation.op]
    assert heads == [18, 0]


def test_components_without_cost_are_left_out():
    model = export_model(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU()), name="m", example={"input": np.zeros((2, 2), np.float32)}
    )
    assert list(count(model.graph.program, model).components) == ["0"]


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(layer, gates):
    module = layer(5, 7, num_layers=2, bidirectional=True, batch_first=True).eval()
    program = torch.export.export(module, (torch.zeros(2, 6, 5),))
    macs = sum(operation.macs for operation in count_operations(program, [(2, 6, 5)]))
    assert macs == 2 * 6 * 2 * gates * 7 * ((5 + 7) + (14 + 7))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(4, 8, 3, groups=2), (1, 4, 10), 8 * 8 * 2 * 3),
        (nn.ConvTranspose2d(3, 5, 2, 2), (1, 3, 4, 4), 4 * 4 * 3 * 5 * 4),
    ],
)
def test_convolutions(layer, shape, macs):
    program = torch.export.export(layer.eval(), (torch.zeros(shape),))
    assert sum(operation.macs for operation in count_operations(program, [shape])) == macs


def test_another_models_program_is_refused(small):
    other = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    with pytest.raises(CompressError, match="not a graph of model 'small'"):
        count(other, small)


def test_shapes_that_do_not_fit_are_named(small):
    with pytest.raises(CompressError, match=r"cannot be counted for inputs of shapes \[\(1, 1, 5, 5\), \(1, 7, 9\)\]"):
        count_operations(small.graph.program, [(1, 1, 5, 5), (1, 7, 9)])
