"""A ViT folder: the library's pixels, its outputs from the engines, and answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from compress.model import Model
from compress.program import run_program
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, change, opened, picture, same, transformers, vit

PICTURES = [picture(41, 57, 0), picture(64, 33, 1), picture(32, 32, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit(tmp_path_factory.mktemp("vit") / "it")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module", params=TARGETS)
def made(model: Model, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(model, tmp_path_factory.mktemp("bundle"), request.param)


def test_what_is_found(model: Model) -> None:
    (pixels,) = model.inputs
    assert (pixels.name, pixels.modality) == ("pixel_values", "image")
    assert pixels.shape == (Dim("batch", 1, 1, 64), 3, 32, 32)
    assert model.components == {"image_encoder": "model.vit", "classifier": "model.classifier"}
    assert model.labels == {"logits": ("cat", "dog", "fish")}


def test_pixels_outputs_and_answers_are_the_librarys(folder: Path, made: Path) -> None:
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    reference = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    pixels = processor(PICTURES, return_tensors="pt")
    with torch.no_grad():
        logits = reference(**pixels).logits
    with opened(made) as session:
        feed = session.processor.feed({"image": PICTURES})
        np.testing.assert_allclose(feed["pixel_values"], pixels["pixel_values"], atol=1e-5)
        same(session.run(feed), {"logits": logits})
        answers = session.ask({"image": PICTURES})["logits"]
        assert [answer["index"] for answer in answers] == logits.argmax(-1).tolist()
        assert {answer["label"] for answer in answers} <= {"cat", "dog", "fish"}


def test_base(tmp_path: Path) -> None:
    model = compress.load(vit(tmp_path / "base", "ViTModel"))
    reference = transformers.ViTModel.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        expected = reference(**{name: torch.from_numpy(value) for name, value in model.example.items()})
    same(run_program(model, model.example), expected)


def test_several_labels_and_a_number(tmp_path: Path) -> None:
    folder = vit(tmp_path / "it")
    change(folder, "config.json", problem_type="multi_label_classification")
    model = compress.load(folder)
    assert model.processing is not None
    assert type(model.processing.section.outputs["logits"]).__name__ == "MultilabelOutput"
    change(folder, "config.json", problem_type="regression")
    model = compress.load(folder)
    assert model.labels == {}
    assert model.processing is not None
    assert type(model.processing.section.outputs["logits"]).__name__ == "ValuesOutput"


@pytest.mark.parametrize(("values", "message"), [
    ({"image_processor_type": "DetrImageProcessor"}, "DetrImageProcessorPil is not known: known are Blip"),
    ({"size": {"height": 30, "width": 30}}, "processing does not fit the model"),
    ({"size": {"longest_edge": 32, "shortest_edge": 32}}, "resizes to .* expected height and width"),
    ({"do_pad": True}, "pads"),
])  # fmt: skip
def test_processors_that_are_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = vit(tmp_path / "it")
    change(folder, "preprocessor_config.json", **values)
    with pytest.raises(compress.CompressError, match=message):
        compress.load(folder)
