"""A model with other weights: tied ones stay tied, and the model it was made from is as it was."""

from __future__ import annotations

import numpy as np
import torch

from compress.program import run_program
from compress.saving import export_model
from compress.weights import storage, with_weights
from tests.compress.quantize.networks import Tied, TwoReaders, make, samples


def test_the_new_weights_are_those_of_the_program_too() -> None:
    model = make(TwoReaders)
    (feed,) = samples(model, 4).batches(4)
    before = run_program(model, feed)["output"]
    new = with_weights(model, {"head.weight": torch.zeros(2, 3), "head.bias": torch.tensor([1.0, 2.0])})
    np.testing.assert_array_equal(run_program(new, feed)["output"], np.tile([[1.0, 2.0]], (4, 1)))
    np.testing.assert_array_equal(run_program(model, feed)["output"], before)
    assert new.weights["left.weight"] is model.weights["left.weight"]


def test_tied_weights_stay_tied() -> None:
    model = export_model(Tied(), name="tied", example={"tokens": np.zeros((2, 3), np.int64)})
    new = with_weights(model, {"words.weight": torch.ones(10, 4)})
    assert storage(new.weights["table.weight"]) == storage(new.weights["words.weight"])
    assert run_program(new, {"tokens": np.zeros((2, 3), np.int64)})["output"].tolist() == [[[4.0] * 10] * 3] * 2
