"""LLaVA folders: prompts of several lengths about pictures, token by token as the library generates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.golden import chain_feeds
from compress.model import Model
from compress.program import model_runner
from compress.targets import get_target
from runtimes.errors import FeedError
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, change, opened, picture, same, transformers
from tests.compress.huggingface.pairs import llava

STEPS = 10
PICTURES = [picture(41, 57, seed) for seed in range(6)]
PROMPTS = ["USER: <image> is the dog? AI:", "USER: <image> a? AI:", "<image> the", "USER: the dog <image>", "<image>",
           "USER: <image> what is it? AI:"]
SEVERAL = ["<image> is the dog <image>", "USER: <image> is? AI:"]      # about three pictures


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = llava(tmp_path_factory.mktemp("llava") / "it", request.param)
    change(made, "generation_config.json", max_new_tokens=STEPS)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module")
def library(folder: Path) -> tuple[Any, Any]:
    """Its network and its processor."""
    return (transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval(),
            transformers.AutoProcessor.from_pretrained(folder, backend="pil"))  # fmt: skip


@pytest.fixture(scope="module", params=TARGETS)
def made(folder: Path, model: Model, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose golden feeds are of a prompt."""
    where = tmp_path_factory.mktemp("bundle")
    engines = {graph: {request.param: compress.export(model, get_target(request.param), where / graph, graph=graph)}
               for graph in model.graphs}  # fmt: skip
    token = int(json.loads((folder / "config.json").read_text())["image_token_index"])
    ids = np.array([[1, *[token] * 16, 9]])
    golden = {"pixel_values": model.example["pixel_values"][:1], "input_ids": ids, "attention_mask": np.ones_like(ids)}
    compress.bundle(model, engines, chain_feeds(model, golden), where / "it.bundle")
    return where / "it.bundle"


def generate(library: tuple[Any, Any], feed: Any) -> np.ndarray:
    found = library[0].generate(**feed, do_sample=False)
    return np.asarray(found[:, feed["input_ids"].shape[1] :])


def test_what_is_found(model: Model) -> None:
    assert list(model.graphs) == ["image", "decoder"]
    assert {spec.name: spec.shape for spec in model.inputs} == {
        "pixel_values": (Dim("batch", 1, 1, 64), 3, 32, 32),
        "input_ids": (Dim("batch", 1, 1, 64), Dim("length", 1, 24, 48)),
        "attention_mask": (Dim("batch", 1, 1, 64), Dim("total", 1, 48, 96)),
    }
    assert [(spec.name, spec.describe()) for spec in model.outputs] == [("text", "int64[batch=1..64, steps=1..10]")]
    paths = {"vision_tower.encoder.layers.0.mlp.fc1": "image_encoder", "multi_modal_projector.linear_1": "projection",
             "language_model.layers.1.mlp.up_proj": "language_model"}  # fmt: skip
    assert {path: model.component_of(f"model.model.{path}") for path in paths} == paths


def test_tokens_are_the_librarys(library: tuple[Any, Any], made: Path) -> None:
    network, processor = library
    with opened(made) as session:
        for prompts, pictures in ((PROMPTS, PICTURES), (SEVERAL, PICTURES[:3]), (PROMPTS[:1], PICTURES[:1])):
            expected = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
            feed = session.processor.feed({"image": pictures, "text": prompts})
            assert feed.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(feed[name], value, atol=1e-5, err_msg=name)
            tokens, theirs = session.run(feed)["text"], generate(library, expected)
            np.testing.assert_array_equal(tokens, theirs)
            answers = session.ask({"image": pictures, "text": prompts})["text"]
            assert answers == [text.strip() for text in processor.batch_decode(theirs, skip_special_tokens=True)]
            if prompts == PROMPTS:      # of several lengths, and rows stop at different ones
                assert len(set(feed["attention_mask"].sum(axis=1).tolist())) > 3
                stops = [list(row).index(end) if (end := network.config.text_config.eos_token_id) in row else STEPS
                         for row in tokens]  # fmt: skip
                assert len(set(stops)) > 2


def test_prompts_that_are_refused(made: Path) -> None:
    with opened(made) as session:
        for prompt, count in (("USER: is the dog? AI:", 0), ("<image> <image>", 2)):
            with pytest.raises(FeedError, match=f"'text' has '<image>' {count} times, but 'image' has 1 samples"):
                session.ask({"image": PICTURES[0], "text": prompt})
        with pytest.raises(FeedError, match=r"'text' .* tokens, more than 48: shorten it"):
            session.ask({"image": PICTURES[:3], "text": "<image>" * 3})


def test_a_step_is_what_no_cache_gives(library: tuple[Any, Any], model: Model) -> None:
    """Logits of the last word, of its step with a cache, and the library's without one."""
    network, processor = library
    feed = processor(images=PICTURES[:2], text=PROMPTS[:2], padding=True, return_tensors="pt")
    runs = model.graphs["decoder"].program.module(check_guards=False)
    names = [spec.name for spec in model.graphs["decoder"].inputs]
    results = [spec.name for spec in model.graphs["decoder"].outputs]
    with torch.no_grad():
        expected = network(**feed).logits[:, -1]
        features = model.graphs["image"].program.module(check_guards=False)(pixel_values=feed["pixel_values"])[0]
        ids, mask = feed["input_ids"], feed["attention_mask"]
        past = {name: torch.zeros(2, 2, 0, 8) for name in names if name.startswith("past")}
        given = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "image_features": features}
        prompt = dict(zip(results, runs(**given, **past), strict=True))
        past = {name: prompt[name.replace("past", "present")] for name in past}
        step = runs(input_ids=ids[:, -1:], attention_mask=mask, image_features=features, **past)
    same({"logits": step[0].numpy()}, {"logits": expected}, within=1e-5)


def test_torch_runs_the_chain(library: tuple[Any, Any], model: Model) -> None:
    feed = library[1](images=PICTURES, text=PROMPTS, padding=True, return_tensors="pt")
    found = model_runner(model)({name: value.numpy() for name, value in feed.items()})
    np.testing.assert_array_equal(found["text"], generate(library, feed))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("original") / "it")


def part(folder: Path, name: str, **values: Any) -> None:
    """Set keys of one network's config."""
    change(folder, "config.json", **{name: {**json.loads((folder / "config.json").read_text())[name], **values}})


def extend(weights: Path) -> None:
    save_file({**load_file(weights), "extra": torch.zeros(1)}, weights, {"format": "pt"})


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda folder: change(folder, "config.json", architectures=["LlavaModel"]),
     "of 'llava' folders those of LlavaForConditionalGeneration are read"),
    (lambda folder: part(folder, "vision_config", model_type="dinov2"),
     "its vision tower is of the model_type 'dinov2': read are clip_vision_model, siglip_vision_model"),
    (lambda folder: part(folder, "text_config", model_type="gpt2"),
     "its language model is of the model_type 'gpt2': read are llama, qwen2"),
    (lambda folder: part(folder, "text_config", rope_parameters={
        "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "its language model has rope_type 'dynamic'"),
    (lambda folder: part(folder, "text_config", model_type="qwen2", use_sliding_window=True),
     "its language model has use_sliding_window"),
    (lambda folder: part(folder, "text_config", max_position_embeddings=32),
     "a picture takes 16 tokens, but half of the network's positions, for the prompt, are 16"),
    (lambda folder: part(folder, "text_config", vocab_size=20), "but the embedding has 20 rows"),
    (lambda folder: change(folder, "config.json", image_token_index=60),
     "image_token_index is 60, which is no token of its tokenizer"),
    (lambda folder: part(folder, "text_config", num_hidden_layers=3), "lacks 'model.language_model.layers.2"),
    (lambda folder: extend(folder / "model.safetensors"), "has 'extra', which the network does not"),
    (lambda folder: (folder / "processor_config.json").unlink(), "has no image processor"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
])  # fmt: skip
def test_folders_that_are_refused(original: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "it"))
    spoil(folder)
    with pytest.raises(compress.CompressError, match=told):
        compress.load(folder)
