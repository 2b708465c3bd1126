"""Bounds of inputs that index a table, from the exported program to the feed that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress import Dim, Input
from compress.targets import get_target
from runtimes.backends import open_engine
from runtimes.engine import read_engine
from runtimes.errors import FeedError
from runtimes.session import Session
from runtimes.spec import TensorSpec

LENGTH = Dim("length", 1, 4, 8)


class Tables(nn.Module):
    """``words`` and ``tags`` reach their tables as they came, ``shifted`` does not, ``counts`` reaches none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.few, self.tags = nn.Embedding(30, 4), nn.Embedding(20, 4), nn.Embedding(7, 4)

    def forward(
        self, words: torch.Tensor, tags: torch.Tensor, shifted: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        text = self.words(words) + self.few(words[:, :1]) + self.tags(tags.long())
        return text.sum(1) + self.words(shifted + 5).sum(1) + counts.float()


@pytest.fixture(scope="module")
def model() -> compress.Model:
    from compress.saving import export_model

    example = {name: np.ones((2, 4), np.int64) for name in ("words", "shifted", "counts")}
    example["tags"] = np.ones((2, 4), np.int32)
    text = {name: Input(modality="text", dims=("batch", LENGTH)) for name in ("words", "tags", "shifted")}
    return export_model(Tables().eval(), name="tables", example=example, inputs=text)


def test_an_input_that_reaches_an_embedding_has_its_rows(model: compress.Model) -> None:
    assert {spec.name: spec.values for spec in model.inputs} == {
        "words": (0, 19), "tags": (0, 6), "shifted": None, "counts": None}  # fmt: skip
    words = next(spec for spec in model.inputs if spec.name == "words")
    assert words.describe() == "int64[batch=1..64, length=1..8] within 0..19"
    assert TensorSpec.from_json(words.to_json()) == words


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
def test_a_value_beyond_the_table_never_reaches_a_backend(model: compress.Model, tmp_path: Path, target: str) -> None:
    compress.export(model, get_target(target), tmp_path / "engine")
    engine = read_engine(tmp_path / "engine")
    feed = {spec.name: np.zeros((1, *([3] if spec.name != "counts" else [4])), spec.dtype) for spec in engine.inputs}
    with Session(engine, open_engine(engine), target) as session:
        session.run(feed)
        for name, value, bounds in (("words", 20, "0..19"), ("words", -1, "0..19"), ("tags", 7, "0..6")):
            bad = np.array([[0, value, 0]], feed[name].dtype)
            with pytest.raises(FeedError, match=rf"input '{name}' has the value {value}, outside {bounds}"):
                session.run({**feed, name: bad})


class Columns(nn.Module):
    """Categories of two tables in two columns, and rows of a parameter that are counted from either end."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Embedding(5, 4), nn.Embedding(100, 4)
        self.rows = nn.Parameter(torch.ones(9, 4))

    def forward(self, categories: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self.few(categories[:, 0]) + self.many(categories[:, 1]) + self.rows[places]


def test_columns_of_several_tables_may_hold_what_the_largest_does_and_rows_are_counted_from_the_end_too() -> None:
    from compress.saving import export_model

    example = {"categories": np.array([[4, 99], [0, 50]]), "places": np.array([-9, 8])}
    model = export_model(Columns().eval(), name="columns", example=example)
    assert {spec.name: spec.values for spec in model.inputs} == {"categories": (0, 99), "places": (-9, 8)}
