"""Outputs that no engine could give are refused when the model is saved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.saving import export_model


class Net(nn.Module):
    """A linear layer, whose result is returned as ``returned`` says, with the input and a constant."""

    def __init__(self, returned: Callable[[Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))
        self.returned = returned

    def forward(self, x: Tensor) -> object:
        return self.returned(self.layer(x), x, self.scale)


@pytest.mark.parametrize(("returned", "message"), [
    (lambda y, x, scale: {"y": y, "scale": scale}, "output 'scale' is the same for all inputs: leave it out"),
    (lambda y, x, scale: {"y": y, "twice": 2 * scale}, "output 'twice' is the same for all inputs"),
    (lambda y, x, scale: {"y": y, "x": x + 1}, "output 'x' is called as an input is: return it under another name"),
])
def test_what_is_refused(returned: Callable[[Tensor, Tensor, Tensor], object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        export_model(Net(returned), name="net", example={"x": np.zeros((2, 3), np.float32)})


def test_an_output_that_an_input_has_a_part_in_is_taken() -> None:
    model = export_model(Net(lambda y, x, scale: {"y": y, "scaled": x[:, :2] * scale}), name="net",
                         example={"x": np.zeros((2, 3), np.float32)})  # fmt: skip
    assert [spec.name for spec in model.outputs] == ["y", "scaled"]
