"""What ``compress inspect`` says of a model: costs by hand, and what stays float or whole, with the reason."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from compress import Input, Model, load, save
from compress.inspection import inspect, model_facts, table
from compress.model import Quantization
from tests.compress import captioner

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")


class Small(nn.Module):
    """An encoder of 3 x 8 numbers and a head; their costs are easily counted."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 4)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).relu().mean(1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "m.pt"
    save(Small(), path, example={"x": np.ones((1, 3, 8), np.float32)}, inputs={"x": Input(modality="sensor")})
    return load(path)


def test_components_cost_what_is_counted_by_hand(model: Model) -> None:
    facts = model_facts(model)
    assert {name: (cost["parameters"], cost["macs"]) for name, cost in facts["components"].items()} == {
        "encoder": (8 * 4 + 4, 3 * 8 * 4), "head": (4 * 2, 4 * 2),
    }  # fmt: skip
    assert facts["components"]["head"]["size_bytes"] == 4 * 8
    assert [spec["name"] for spec in facts["inputs"]] == ["x"]
    assert [spec["name"] for spec in facts["outputs"]] == ["output"]


def test_every_operator_with_weights_is_listed(model: Model) -> None:
    operators = {o["path"]: (o["component"], o["precision"]) for o in inspect(model).operators}
    assert operators["encoder"] == ("encoder", "int8")
    assert operators["head"] == ("head", "int8")


def test_what_stays_float_has_a_reason(model: Model) -> None:
    kept = Quantization(scheme="x86-vnni", ranges={"forward": {}}, settings={"ranges": "minmax"}, keep_float=("head",))
    found = inspect(dataclasses.replace(model, quantization=kept))
    reasons = {o["path"]: o["reason"] for o in found.operators if o["precision"] == "float"}
    assert list(reasons) == ["head"]
    assert reasons["head"]
    assert found.quantization == {"scheme": "x86-vnni", "tensors": 0, "ranges": "minmax"}
    assert found.not_prunable == {"": "the model is quantized: prune the float model it was made from"}


def test_a_model_without_a_factory_says_why_it_cannot_be_pruned(model: Model) -> None:
    found = inspect(model)
    assert found.prunable == {}
    assert "has no factory" in found.not_prunable[""]


def test_the_record_is_json_and_the_table_shows_it(model: Model, tmp_path: Path) -> None:
    from rich.console import Console

    found = inspect(model)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (record["format"], record["version"], record["name"]) == ("compress.inspection", 1, "Small")
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(table(found), markup=False)  # as the command line does: a shape is written in brackets
    text = console.export_text()
    for shown in ("Small", "sensor", "[batch=1..64, 3, 8]", "encoder", "96", "has no factory"):
        assert shown in text, shown


def test_the_graphs_of_a_captioner() -> None:
    found = inspect(captioner.model())
    assert {name: graph["loops"] for name, graph in found.graphs.items()} == {"encoder": False, "decoder": True}
    assert found.graphs["encoder"] == {
        "inputs": {"image": "float32[batch=1..16, 12]"}, "outputs": {"memory": "float32[batch=1..16, 16]"},
        "loops": False}  # fmt: skip
    assert [spec["name"] for spec in found.facts["inputs"]] == ["image"]
    assert {operator["graph"] for operator in found.operators} == {"encoder", "decoder"}
    console = Console(file=io.StringIO(), width=160)
    console.print(table(found), markup=False)    # as the command does
    shown = console.file.getvalue()     # type: ignore[attr-defined]
    assert "once a token" in shown
    assert "past_key float32[batch=1..16, 2, past=0..24, 8]" in shown
