"""A ViLT folder: the library's feed, its outputs from the engines for pictures of several sizes, and answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from compress.model import Model
from compress.program import run_program
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, TEXTS, bundle, change, opened, picture, same, transformers
from tests.compress.huggingface.pairs import vilt

PICTURES = [picture(41, 57, 0), picture(64, 33, 1), picture(32, 32, 2), picture(40, 200, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vilt(tmp_path_factory.mktemp("vilt") / "it")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module", params=TARGETS)
def made(model: Model, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(model, tmp_path_factory.mktemp("bundle"), request.param)


def test_what_is_found(model: Model) -> None:
    inputs = {spec.name: spec for spec in model.inputs}
    batch, height, width = Dim("batch", 1, 1, 64), Dim("height", 16, 32, 48), Dim("width", 16, 32, 48)
    assert inputs["pixel_values"].shape == (batch, 3, height, width)
    assert inputs["pixel_mask"].shape == (batch, height, width)
    assert inputs["input_ids"].shape == (batch, Dim("length", 1, 16, 24))
    assert [spec.describe() for spec in model.outputs] == ["float32[batch=1..64, 3]"]
    assert model.labels == {"logits": ("no", "yes", "two")}
    assert model.components["classifier"] == "model.classifier"
    assert model.component_of("model.vilt.embeddings.patch_embeddings.projection") == "image_embeddings"
    assert model.component_of("model.vilt.encoder.layer.0.attention.attention.query") == "encoder"


def test_feed_outputs_and_answers_are_the_librarys(folder: Path, made: Path) -> None:
    """The last picture is one patch high, and is padded to two."""
    images = transformers.ViltImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    reference = transformers.ViltForQuestionAnswering.from_pretrained(folder).eval()
    with opened(made) as session:
        for some in ([0], [1], [0, 1, 2, 3], [3]):      # alone; and padded to the largest of a batch
            pictures, texts = [PICTURES[index] for index in some], [TEXTS[index] for index in some]
            expected = {**images(pictures, return_tensors="pt"), **tokenizer(texts, padding=True, return_tensors="pt")}
            feed = session.processor.feed({"image": pictures, "text": texts})
            assert feed.keys() == expected.keys()
            for name, value in expected.items():
                cut = feed[name][..., :8, :] if some == [3] and name.startswith("pixel") else feed[name]
                np.testing.assert_allclose(cut, value, atol=1e-5, err_msg=name)
            with torch.no_grad():
                logits = reference(**expected).logits
            same(session.run(feed), {"logits": logits})
            answers = session.ask({"image": pictures, "text": texts})["logits"]
            assert [answer["index"] for answer in answers] == logits.argmax(-1).tolist()
            assert answers[0]["score"] == pytest.approx(float(logits[0].sigmoid().max()), abs=1e-4)


def reference_of(name: str, folder: Path, model: Model) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Ours and the library's outputs for the example, with whole pictures: it fills a batch up at random."""
    feed = {**model.example, "pixel_mask": np.ones_like(model.example["pixel_mask"])}
    reference = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(**{key: torch.from_numpy(value) for key, value in feed.items()})
    return run_program(model, feed), expected


def test_a_score_of_how_they_fit(tmp_path: Path) -> None:
    model = compress.load(vilt(tmp_path / "it", "ViltForImageAndTextRetrieval"))
    found, expected = reference_of("ViltForImageAndTextRetrieval", tmp_path / "it", model)
    assert found["logits"].shape == (2, 1)
    same(found, {"logits": expected["logits"]})
    assert model.components["head"] == "model.rank_output"


def test_base(tmp_path: Path) -> None:
    model = compress.load(vilt(tmp_path / "it", "ViltModel"))
    found, expected = reference_of("ViltModel", tmp_path / "it", model)
    same(found, {"pooler_output": expected["pooler_output"]})
    states, theirs = found["last_hidden_state"], expected["last_hidden_state"]
    before = model.example["input_ids"].shape[1] + 1
    same({"text": states[:, :before]}, {"text": theirs[:, :before]})
    by_first = [np.argsort(array[:, before:, 0], axis=1)[..., None] for array in (states, theirs.numpy())]
    same({"patches": np.take_along_axis(states[:, before:], by_first[0], 1)},      # theirs come in a random order
         {"patches": theirs[:, before:].take_along_dim(torch.from_numpy(by_first[1]), 1)})  # fmt: skip


@pytest.mark.parametrize(("values", "message"), [
    ({"do_resize": False}, "does not resize pictures to whole patches of 8 pixels"),
    ({"size_divisor": 12}, "does not resize pictures to whole patches of 8 pixels"),
    ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessorPil is not known: known are ViltImageProcessor"),
])  # fmt: skip
def test_processors_that_are_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = vilt(tmp_path / "it")
    change(folder, "preprocessor_config.json", **values)
    with pytest.raises(compress.CompressError, match=message):
        compress.load(folder)


def test_patches_at_random_are_refused(tmp_path: Path) -> None:
    folder = vilt(tmp_path / "it", max_image_length=20)
    with pytest.raises(compress.CompressError, match=r"draws 20 patches .* \(max_image_length\).*: set -1 .* up to 24"):
        compress.load(folder)
    change(folder, "config.json", max_image_length=24)
    assert compress.load(folder).labels == {"logits": ("no", "yes", "two")}
