"""What a user protects stays whole, whatever is pruned; a name that protects nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration import CalibrationSet, open_set
from compress.errors import CompressError
from compress.model import Input, Model
from compress.prune import PruneConfig, prunable, prune
from compress.prune.protection import check_protected, is_protected
from compress.saving import save
from compress.zoo.digits_questions import PROCESSING
from compress.zoo.digits_vqa import build
from runtimes.spec import Dim

SMALL = {"width": 16, "head_dim": 8, "image_heads": (2, 2), "image_hidden": (16, 16), "text_heads": (2,),
         "text_hidden": (16,), "fusion_heads": (2,), "fusion_hidden": (16,)}
FEED = {"image": np.zeros((2, 1, 8, 8), np.float32), "question": np.arange(24).reshape(2, 12)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    return save(build(**SMALL), tmp_path_factory.mktemp("asking") / "model.pt", example=FEED, processing=PROCESSING,
                inputs={"question": Input(modality="text", dims=("batch", Dim("length", 4, 12, 12)))})


@pytest.fixture(scope="module")
def data(model: Model) -> CalibrationSet:
    return open_set([FEED], model.inputs, name="two")


@pytest.mark.parametrize(("path", "glob", "expected"), [
    ("text.blocks.0.up", "text", True), ("text.blocks.0.up", "*.blocks.0", True), ("text.blocks.0.up", "up", False),
    ("text.blocks.0.up", "tex", False), ("textual.up", "text*", True), ("", "*", True),
])
def test_a_glob_holds_a_module_and_all_under_it(path: str, glob: str, expected: bool) -> None:
    assert is_protected(path, ("other", glob)) is expected


def test_modules_and_parameters_have_names(networks) -> None:
    check_protected(networks.Block(), ("attention.*", "up", "norm?", "down.weight", "*"))
    with pytest.raises(CompressError, match=r"protect has 'atention', which no module of the model is called: give "
                                            r"globs of module paths \(norm1, norm2, attention, up, down, and"):
        check_protected(networks.Block(), ("up", "atention"))


@pytest.mark.parametrize("goal", [{"macs": 0.5}, {"vocabulary": "used"}, {"merge_tokens": 2}, {"sparsity": "2:4"}])
def test_a_name_that_is_nobodys_is_refused(model: Model, data: CalibrationSet, goal: dict[str, object]) -> None:
    with pytest.raises(CompressError, match="protect has 'text_encodr', which no module of the model is called"):
        prune(model, data, PruneConfig(protect=("text_encodr",), **goal))  # type: ignore[arg-type]


def test_what_could_be_pruned_is_asked_in_the_same_way(model: Model) -> None:
    with pytest.raises(CompressError, match="protect has 'text_encodr'"):
        prunable(model, PruneConfig(protect=("text_encodr",)))


def test_a_table_that_is_protected_keeps_its_rows(model: Model, data: CalibrationSet) -> None:
    with pytest.raises(CompressError, match=r"protect=\['text_encoder'\] leaves no table to prune: "
                                            r"text_encoder.embedding match"):
        prune(model, data, PruneConfig(vocabulary="used", protect=("text_encoder",)))


def test_an_encoder_that_is_protected_merges_nothing(model: Model, data: CalibrationSet) -> None:
    with pytest.raises(CompressError, match=r"can be merged \(image_encoder.blocks: protect names it"):
        prune(model, data, PruneConfig(merge_tokens=2, protect=("image_encoder.blocks.1",)))
