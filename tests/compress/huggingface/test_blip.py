"""BLIP folders: captions and answers token by token as the library generates them, and whether a text fits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.data import wanted_of
from compress.model import Model
from compress.program import model_runner
from runtimes.errors import FeedError
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, TEXTS, bundle, change, opened, picture, same, transformers
from tests.compress.huggingface.pairs import blip

PICTURES = [picture(41, 57, seed) for seed in range(6)]
STEPS = 8
PROMPTS = ["", "the", "a photo", "two dogs", "a", "the dog"]


def folder_of(where: Path, architecture: str, **settings: Any) -> Path:
    folder = blip(where / "it", architecture, **settings)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": STEPS}))
    return folder


@pytest.fixture(scope="module", params=[
    "BlipForConditionalGeneration", pytest.param("BlipForQuestionAnswering", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("blip"), request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module", params=TARGETS)
def made(model: Model, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(model, tmp_path_factory.mktemp("bundle"), request.param)


def asks(folder: Path) -> bool:
    return "Question" in json.loads((folder / "config.json").read_text())["architectures"][0]


@functools.cache
def network_of(folder: Path) -> Any:
    kind = "BlipForQuestionAnswering" if asks(folder) else "BlipForConditionalGeneration"
    return getattr(transformers, kind).from_pretrained(folder).eval()


def raw(folder: Path, pictures: Any, texts: Any) -> dict[str, Any]:
    return {"image": pictures, "text" if asks(folder) else "prompt": texts}


def pixels(folder: Path, pictures: list[Any] = PICTURES) -> torch.Tensor:
    processor = transformers.BlipImageProcessorPil.from_pretrained(folder)
    found: torch.Tensor = processor(pictures, return_tensors="pt")["pixel_values"]
    return found


def reference(folder: Path, texts: list[str], pictures: list[Any] = PICTURES) -> np.ndarray:
    """The tokens of the library's greedy search, behind the start token and the prompt; texts of one length."""
    tokens = transformers.BertTokenizer.from_pretrained(folder)(texts, return_tensors="pt")
    found = network_of(folder).generate(
        pixel_values=pixels(folder, pictures), input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"], max_new_tokens=STEPS, do_sample=False)
    start = 1 if asks(folder) else tokens["input_ids"].shape[1] - 1     # of the prompt the separator is not given
    return np.asarray(found[:, start:])


def lengths(tokens: np.ndarray, stop: int) -> set[int]:
    """How many tokens there are up to the stop token, in each row."""
    return {list(row).index(stop) + 1 if stop in row else len(row) for row in tokens}


def test_what_is_found(folder: Path, model: Model) -> None:
    assert [spec.name for spec in model.inputs] == ["pixel_values", "input_ids", "attention_mask"]
    assert [(spec.name, spec.describe()) for spec in model.outputs] == [("text", "int64[batch=1..64, steps=1..8]")]
    assert model.inputs[0].shape == (Dim("batch", 1, 1, 64), 3, 32, 32)
    named = [("vision_model.encoder.layers.0.mlp.fc1", "image_encoder"), ("text_decoder.cls", "text_decoder")]
    # Of a folder of pictures with captions, these are no beginnings of captions.
    assert [source.name for source in wanted_of(model).raw] == ["image", "text"][: 1 + asks(folder)]
    if asks(folder):
        assert list(model.graphs) == ["image", "question", "decoder"]
        assert model.inputs[1].shape[1] == Dim("length", 1, 16, 24)
        named.append(("text_encoder.encoder.layer.0.attention.self.query", "question_encoder"))
    else:
        assert list(model.graphs) == ["image", "decoder"]
        assert model.inputs[1].shape[1] == Dim("length", 1, 4, 12)
    assert {model.component_of(f"model.{path}"): name for path, name in named} == {name: name for _, name in named}


def test_tokens_are_the_librarys(folder: Path, made: Path) -> None:
    """Of texts of one length together, of those of several lengths one at a time: that is how the library is right."""
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    stop = json.loads((folder / "config.json").read_text())["text_config"]["sep_token_id"]
    found: set[int] = set()
    with opened(made) as session:
        for texts in (["the dog"] * 6, PROMPTS):
            feed = session.processor.feed(raw(folder, PICTURES, texts))
            np.testing.assert_allclose(feed["pixel_values"], pixels(folder), atol=1e-5)
            tokens = session.run(feed)["text"]
            if texts == PROMPTS:
                for row, text, image in zip(tokens, texts, PICTURES, strict=True):
                    (alone,) = reference(folder, [text], [image])
                    np.testing.assert_array_equal(row[: len(alone)], alone)
                    assert (row[len(alone) :] == 0).all()
            else:
                np.testing.assert_array_equal(tokens, reference(folder, texts))
            found |= lengths(tokens, stop)
            answers = session.ask(raw(folder, PICTURES, texts))["text"]
            assert answers == [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    assert len(found) > 2       # rows stop at different lengths


def test_torch_runs_the_chain(folder: Path, model: Model) -> None:
    texts = transformers.BertTokenizer.from_pretrained(folder)(["the dog"] * 6, return_tensors="np")
    ids, mask = texts["input_ids"], texts["attention_mask"]
    if not asks(folder):
        ids, mask = ids[:, :-1].copy(), mask[:, :-1]
        ids[:, 0] = 63
    found = model_runner(model)({"pixel_values": pixels(folder).numpy(), "input_ids": ids, "attention_mask": mask})
    np.testing.assert_array_equal(found["text"], reference(folder, ["the dog"] * 6))


def test_a_caption_needs_no_prompt(folder: Path, made: Path) -> None:
    with opened(made) as session:
        if asks(folder):
            with pytest.raises(FeedError, match="lacks 'text'"):
                session.ask({"image": PICTURES})
            return
        tokens = session.run(session.processor.feed({"image": PICTURES}))["text"]
        expected = network_of(folder).generate(pixel_values=pixels(folder), max_new_tokens=STEPS, do_sample=False)
        np.testing.assert_array_equal(tokens, expected[:, 1:])
        assert isinstance(session.ask({"image": PICTURES[0]})["text"], str)
        with pytest.raises(FeedError, match=r"'prompt' .* has 14 tokens, more than 12"):
            session.ask({"image": PICTURES[0], "prompt": "abcdefghijklm"})
        with pytest.raises(FeedError, match="batch"):
            session.ask({"image": PICTURES[:3], "prompt": ["a", "dog"]})


@pytest.mark.parametrize("target", TARGETS)
def test_whether_a_text_fits(tmp_path: Path, target: str) -> None:
    folder = blip(tmp_path / "it", "BlipForImageTextRetrieval")
    model = compress.load(folder)
    assert model.labels == {"itm_score": ("no match", "match")}
    network = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    tokens = transformers.BertTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(
            pixel_values=pixels(folder, PICTURES[:4]), input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"]).itm_score
    with opened(bundle(model, tmp_path, target)) as session:
        pairs = {"image": PICTURES[:4], "text": TEXTS}
        same(session.run(session.processor.feed(pairs)), {"itm_score": expected})
        answers = session.ask(pairs)["itm_score"]
        assert [answer["index"] for answer in answers] == expected.argmax(-1).tolist()


@pytest.mark.parametrize(("file", "values", "told"), [
    ("config.json", {"architectures": ["BlipModel"]},
     "of 'blip' folders those of BlipForConditionalGeneration, BlipForQuestionAnswering, BlipForImageTextRetrieval"),
    ("config.json", {"text_config": {"vocab_size": 20}}, "ids up to 62, but the embedding has 20 rows"),
    ("config.json", {"text_config": {"num_hidden_layers": 3}}, "lacks 'text_decoder.bert.encoder.layer.2"),
    ("config.json", {"text_config": {"num_hidden_layers": 1}}, "has 'text_decoder.bert.encoder.layer.1"),
    ("preprocessor_config.json", None, "has no image processor"),
    ("tokenizer.json", None, "has no tokenizer"),
])  # fmt: skip
def test_folders_that_are_refused(tmp_path: Path, file: str, values: dict[str, Any] | None, told: str) -> None:
    folder = blip(tmp_path / "it")
    if values is None:
        (folder / file).unlink()
    else:
        config = json.loads((folder / file).read_text())
        change(folder, file, **{key: {**config[key], **value} if isinstance(value, dict) else value
                                for key, value in values.items()})  # fmt: skip
    with pytest.raises(compress.CompressError, match=told):
        compress.load(folder)
