"""Examinations of code: does it run, can it be traced, which sizes does it fix, which depend on values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import compress
from compress import Dim, Input
from compress.doctor.table import table
from compress.saving import export_model
from tests.compress.doctor.examine import Examine
from tests.compress.doctor.networks import (
    Around,
    Attends,
    Branches,
    FixesBatch,
    FixesLength,
    Healthy,
    Mixes,
    NeedsFive,
    Packs,
    ReturnsSelected,
    Selects,
    Slices,
    ThroughNumpy,
)

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def test_a_program_that_fails_on_its_example_blocks_and_the_rest_says_so(tmp_path: Path) -> None:
    model = export_model(Attends(), name="m", example={"word": np.arange(6).reshape(2, 3)})
    broken = dataclasses.replace(model, example={"word": np.full((2, 3), 10)})  # its table has rows 0..9
    diagnosis = compress.doctor(broken, ["onnxruntime-cpu"])
    (found,) = diagnosis.of("runs")
    assert (found.severity, found.concerns) == ("blocks", ("save", "every stage"))
    assert "tokens in the vocabulary" in found.what
    assert diagnosis.of("outliers")[0].what.startswith("this could not be examined: the model fails on a sample")
    assert "activations_bytes" not in diagnosis.facts
    assert "of activations" not in str(table(diagnosis).renderables[-2])


def test_a_branch_on_a_value_is_found_at_the_users_line(examined: Examine) -> None:
    (found,) = examined("untraceable", Around(Branches()), {"x": X})
    assert (found.severity, found.where) == ("blocks", "inner")
    assert found.source is not None
    assert found.source.startswith("networks.py:")
    assert found.source.endswith("if x.sum() > 0:  # the line to find")
    assert "torch.where" in found.remedy
    assert "torch.cond" in found.remedy
    assert "control flow depends on the values" in found.what


@pytest.mark.parametrize(
    ("module", "line", "remedy"),
    [
        (Slices(), "length = int(x.max().item())", "mask instead of slicing"),
        (ThroughNumpy(), "return torch.from_numpy(x.numpy() * 2)", "torch's own functions"),
    ],
    ids=["item", "numpy"],
)
def test_the_remedy_fits_the_reason(examined: Examine, module: nn.Module, line: str, remedy: str) -> None:
    (found,) = examined("untraceable", module, {"x": X})
    assert str(found.source).endswith(line)
    assert remedy in found.remedy


def test_an_example_that_does_not_fit_its_dims_is_told_in_the_loaders_words(examined: Examine) -> None:
    (found,) = examined("untraceable", Healthy(), {"x": np.ones((65, 4), np.float32)})
    assert "batch is 65, outside 1..64" in found.what
    assert (found.severity, found.source) == ("blocks", None)


def test_a_packed_sequence_is_told_to_run_on_the_padded_batch(examined: Examine) -> None:
    (found,) = examined("untraceable", Packs(), {"x": np.ones((2, 5, 4), np.float32)})
    assert "padded batch" in found.remedy


def test_what_can_be_traced_has_no_such_finding(examined: Examine) -> None:
    assert examined("untraceable", Healthy(), {"x": X}) == []
    assert examined("dynamic_sizes", Healthy(), {"x": X}) == []
    assert examined("data_shapes", Healthy(), {"x": X}) == []
    assert examined("runs", Healthy(), {"x": X}) == []


def test_a_length_that_the_code_fixes_is_found_with_its_line(examined: Examine) -> None:
    inputs = {"x": Input(dims=("batch", Dim("length", 1, 6, 12)))}
    (found,) = examined("dynamic_sizes", Around(FixesLength()), {"x": np.ones((2, 6, 4), np.float32)}, inputs=inputs)
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "'length'" in found.what
    assert "6 alone" in found.what
    assert str(found.source).endswith("return x + self.position  # six places")


def test_a_batch_that_the_code_fixes_is_found_and_the_rest_examined_all_the_same(examined: Examine) -> None:
    (found,) = examined("dynamic_sizes", FixesBatch(), {"x": X})
    assert "'batch'" in found.what
    assert "3 alone" in found.what
    assert str(found.source).endswith("return x.reshape(3, 4, 1).sum(2)")
    assert examined("backends", FixesBatch(), {"x": X}) == []  # traced with the batch of the example


def test_sizes_that_the_code_tells_apart_are_found_with_the_line(examined: Examine) -> None:
    (found,) = examined("dynamic_sizes", Around(Mixes()), {"x": X})
    assert "tells sizes apart: 4 != x.shape[0]" in found.what
    assert found.where == "inner"
    assert str(found.source).endswith("return x.t().reshape(x.shape[0], 4)")


def test_a_mask_as_an_index_costs_speed(examined: Examine) -> None:
    (found,) = examined("data_shapes", Around(Selects()), {"x": X}, targets=["rtx"])
    assert (found.severity, found.where) == ("costs speed", "inner")
    assert "aten.index.Tensor" in found.what
    assert str(found.source).endswith("return x + x[x[:, 0] > 0].sum(0)")
    assert "rtx" in found.concerns


def test_an_output_whose_size_depends_on_values_blocks(examined: Examine) -> None:
    names = ("untraceable", "data_shapes")  # compress.saving may refuse it, or say so in the output's spec
    (found,) = [finding for name in names for finding in examined(name, ReturnsSelected(), {"x": X})]
    assert found.severity == "blocks"


def test_a_model_that_fails_on_its_example_is_found_with_its_line(examined: Examine) -> None:
    (found,) = examined("runs", Around(NeedsFive()), {"x": X})
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "mat1 and mat2" in found.what
    assert str(found.source).endswith("return self.linear(x)")
