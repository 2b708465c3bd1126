"""Examinations of what a model computes: weights, batches, inputs, runs that differ, types, modes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compress.doctor.patient import varied
from tests.compress.doctor.examine import Examine
from tests.compress.doctor.networks import (
    Around,
    BatchStatistics,
    DividesByZero,
    Drops,
    Healthy,
    Ignores,
    Mixes,
    Similarity,
    Spare,
    changed,
)

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("name", ["finite", "randomness", "batch", "inputs", "unused_weights", "dtypes"])
def test_a_healthy_model_has_no_finding(examined: Examine, name: str) -> None:
    assert examined(name, Healthy().eval(), {"x": X}) == []


def test_weights_that_are_not_finite_are_counted_and_named(examined: Examine) -> None:
    weight = torch.zeros(3, 16)
    weight[1, 2], weight[2, 0] = torch.nan, torch.inf
    (found,) = examined("finite", changed(Healthy(), down__weight=weight), {"x": X})
    assert (found.severity, found.where) == ("blocks", "down.weight")
    assert found.what.startswith("2 of the 48 values")


def test_a_masks_infinity_in_a_buffer_is_no_finding(examined: Examine) -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.unsqueeze(1) + self.mask).softmax(-1)

    assert examined("finite", Causal(), {"x": X}) == []


def test_a_model_with_such_weights_is_examined_further(examined: Examine) -> None:
    broken = changed(Ignores(), seen__weight=torch.full((3, 4), torch.nan))
    before = copy.deepcopy(broken.state_dict())
    assert [f.where for f in examined("finite", broken, {"picture": X, "word": np.ones((3, 2), np.int64)})] == [
        "seen.weight"
    ]
    torch.testing.assert_close(broken.state_dict(), before, equal_nan=True)  # the model itself is as it was
    found = examined("stays_float", broken, {"picture": X, "word": np.ones((3, 2), np.int64)})
    assert "embedding" in found[0].what


def test_a_nan_output_is_traced_to_the_operator_that_makes_it(examined: Examine) -> None:
    (found,) = examined("finite", Around(DividesByZero()), {"x": X})
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "aten.sub.Tensor" in found.what  # inf - inf; the infinities before it are not what is in the output
    assert str(found.source).endswith("return shifted / (x - x) - shifted / (x - x)")


def test_two_runs_that_differ_are_found_with_the_operator(examined: Examine) -> None:
    (found,) = examined("randomness", Around(Drops()), {"x": X})
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "aten.dropout.default" in found.what
    assert str(found.source).endswith("return F.dropout(x, 0.5, training=True)")


def test_dropout_that_is_off_is_no_finding(examined: Examine) -> None:
    assert examined("randomness", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), {"input": X}) == []


def test_batch_statistics_are_found_with_their_module(examined: Examine) -> None:
    (found,) = examined("batch", Around(BatchStatistics()), {"x": X})
    assert found.severity == "blocks"
    assert found.where == "inner.norm"
    assert "statistics of the batch" in found.what
    assert "track_running_stats" in found.remedy


def test_a_batch_norm_with_running_statistics_is_no_finding(examined: Examine) -> None:
    norm = nn.BatchNorm1d(4)  # in training mode, as a fresh module is: it is exported in evaluation mode
    assert examined("batch", norm, {"input": X}) == []
    assert norm.training


def test_a_reshape_that_mixes_samples_is_found(examined: Examine) -> None:
    (found,) = examined("batch", Mixes(), {"x": X})
    assert found.severity == "blocks"
    assert "output of a sample changes" in found.what
    assert "reshape" in found.remedy


def test_similarities_of_a_batch_are_to_be_saved_as_towers(examined: Examine) -> None:
    (found,) = examined("batch", Similarity(), {"image": X, "text": X + 1})
    assert "encode_image" in found.remedy


def test_an_ignored_input_is_found_and_the_other_is_not(examined: Examine) -> None:
    (found,) = examined("inputs", Ignores(), {"picture": X, "word": np.ones((3, 2), np.int64)})
    assert (found.severity, found.where) == ("blocks", "input 'word'")
    assert "(text)" in found.what


def test_unused_weights_are_named_and_tied_ones_are_not(examined: Examine) -> None:
    (found,) = examined("unused_weights", Spare(), {"x": X})
    assert found.what.startswith("4 parameters, 120 bytes,")  # thrown 16 + 4, never 8 + 2, four bytes each
    assert all(name in found.where for name in ("thrown.weight", "never.weight")) or "more" in found.where
    assert "tied" not in found.where


def test_double_and_half_weights_are_found(examined: Examine) -> None:
    double = examined("dtypes", Healthy().double(), {"x": X.astype(np.float64)})
    assert [f.where for f in double] == ["up.weight, up.bias, down.weight and 1 more", "input x"]
    assert "float64" in double[0].what
    assert "model.float()" in double[0].remedy
    half = examined("dtypes", Healthy().half(), {"x": X.astype(np.float16)})
    assert "float16" in half[0].what


def test_a_module_in_training_mode_is_a_note(examined: Examine) -> None:
    (found,) = examined("mode", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), {"input": X})
    assert (found.severity, found.where) == ("note", "1")
    assert examined("mode", Healthy().eval(), {"x": X}) == []


@pytest.mark.parametrize(
    "value",
    [np.zeros((2, 3), np.int64), np.ones((2, 3), np.int64), np.arange(6).reshape(2, 3), np.array([[True, False]]),
     np.zeros((2, 3), np.float32), np.linspace(0, 1, 6, dtype=np.float32)],
    ids=["zeros", "ones", "integers", "booleans", "zero floats", "floats"],
)  # fmt: skip
def test_varied_values_are_all_others_of_the_same_kind(value: np.ndarray) -> None:
    for seed in range(5):
        other = varied(value, seed)
        assert (other.dtype, other.shape) == (value.dtype, value.shape)
        assert (other != value).all()
        if value.dtype.kind in "iu":
            assert other.min() >= 0
            assert other.max() <= max(1, value.max())
