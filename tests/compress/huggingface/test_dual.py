"""CLIP and SigLIP folders: two graphs whose answer, zero-shot labels among them, is the library's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.model import Model
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, clip, opened, picture, same, siglip, transformers

LABELS = ["a photo of a cat", "Two dogs!", "the dog", "a quick brown fox"]
PICTURES = [picture(41, 57, 0), picture(64, 33, 1), picture(32, 32, 2)]


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path], Path]
    network: str
    tokenizer: str
    pictures: str
    padding: bool | str
    activation: Callable[[torch.Tensor], torch.Tensor]
    components: tuple[str, ...]


KINDS = {
    "clip": Kind(clip, "CLIPModel", "CLIPTokenizer", "CLIPImageProcessorPil", True, lambda x: x.softmax(-1),
                 ("image_encoder", "image_projection", "text_encoder", "text_projection")),
    "siglip": Kind(siglip, "SiglipModel", "PreTrainedTokenizerFast", "SiglipImageProcessorPil", "max_length",
                   torch.sigmoid, ("image_encoder", "text_encoder")),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path, Model]:
    kind = KINDS[request.param]
    folder = kind.make(tmp_path_factory.mktemp(request.param) / "it")
    return kind, folder, compress.load(folder)


def test_what_is_found(loaded: tuple[Kind, Path, Model]) -> None:
    kind, _, model = loaded
    assert list(model.graphs) == ["image", "text"]
    assert tuple(model.components) == kind.components
    batch = Dim("batch", 1, 1, 64)
    assert model.graphs["image"].inputs[0].shape == (batch, 3, 32, 32)
    length: Any = Dim("length", 1, 16, 32) if kind.padding is True else 24
    assert model.graphs["text"].inputs[0].shape == (batch, length)
    for name, graph in model.graphs.items():
        owners = {model.component_of(path) for path in _paths(graph.program)} - {"other"}
        assert owners == {component for component in kind.components if component.startswith(name)}


def _paths(program: Any) -> set[str]:
    from compress.program import module_path

    return {module_path(node) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("target", TARGETS)
def test_zero_shot_is_the_librarys(loaded: tuple[Kind, Path, Model], tmp_path: Path, target: str) -> None:
    kind, folder, model = loaded
    reference = getattr(transformers, kind.network).from_pretrained(folder).eval()
    tokenizer = getattr(transformers, kind.tokenizer).from_pretrained(folder)
    processor = getattr(transformers, kind.pictures).from_pretrained(folder)
    with opened(bundle(model, tmp_path, target)) as session:
        for labels in (LABELS, LABELS[1:2]):
            tokens = tokenizer(labels, padding=kind.padding, return_tensors="pt")
            pixels = processor(PICTURES, return_tensors="pt")
            feed = session.processor.feed({"image": PICTURES, "text": labels})
            assert feed.keys() == {*tokens, *pixels}
            for name, value in tokens.items():
                np.testing.assert_array_equal(feed[name], value)
            np.testing.assert_allclose(feed["pixel_values"], pixels["pixel_values"], atol=1e-5)
            with torch.no_grad():
                expected = reference(**tokens, **pixels)
            found = session.run(feed)
            for name in ("image_embeds", "text_embeds"):    # the library's are of length one
                ours = found[name] / np.linalg.norm(found[name], axis=-1, keepdims=True)
                same({name: ours}, {name: expected[name]})
            scores = kind.activation(expected.logits_per_image).numpy()
            np.testing.assert_allclose(session.ask({"image": PICTURES, "text": labels})["match"], scores, atol=1e-4)
        assert scores.shape == (3, 1)
        (one,) = session.ask({"image": PICTURES[0], "text": LABELS})["match"]
        assert len(one) == 4
        assert max(one) - min(one) > 0.01
