"""Vision-Encoder-Decoder folders: TrOCR, GPT2 and BERT decoders, token for token the library's greedy search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.model import Model
from compress.program import model_runner
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, change, opened, picture, transformers
from tests.compress.huggingface.generators import generated, reader

PICTURES = [picture(41, 57, 0), picture(64, 33, 1), picture(32, 32, 2), picture(32, 40, 3), picture(50, 32, 4)]
PAD = 0
# Each network's stop token is a word that it writes in some rows early, in others late or never.
STOPS = {"trocr": 62, "gpt2": 63, "bert": 13}


@dataclass(frozen=True)
class Case:
    kind: str
    folder: Path
    model: Model
    pixels: Any
    tokens: np.ndarray      # the library's, behind the start token


@pytest.fixture(scope="module", params=STOPS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind = request.param
    settings = {"eos_token_id": STOPS[kind], "min_length": 3, "suppress_tokens": [2]}
    folder = reader(tmp_path_factory.mktemp(kind) / "it", kind, generation=settings)
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    pixels = processor(PICTURES, return_tensors="pt")["pixel_values"]
    reference = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    return Case(kind, folder, compress.load(folder), pixels, generated(reference, 1, pixel_values=pixels))


def test_what_is_found(case: Case) -> None:
    model, batch = case.model, Dim("batch", 1, 1, 64)
    assert model.graphs["encoder"].inputs[0].shape == (batch, 3, 32, 32)
    shapes = {spec.name: spec.shape for spec in model.graphs["decoder"].inputs}
    assert shapes["input_ids"] == (batch, Dim("length", 1, 1, 40))
    assert shapes["past_value_1"] == (batch, 4, Dim("past", 0, 14, 39), 8)
    states = 18 if case.kind == "trocr" else 17     # DeiT has two tokens beside those of the 16 patches
    assert shapes["cross_value_0"] == (batch, 4, Dim("states", 1, states, states), 8)
    assert shapes["cross_key_0"] == (batch, 4, 8, Dim("states", 1, states, states))     # as it is multiplied
    assert list(model.components) == ["image_encoder", "text_decoder"]
    assert [spec.name for spec in model.inputs] == ["pixel_values"]
    assert model.chain is not None
    loop = model.chain["steps"][1]["loop"]
    assert (loop["start"], loop["stop"], loop["pad"]) == ([2], [STOPS[case.kind]], PAD)
    assert (loop["max_steps"], loop["min_steps"], loop["suppress"]) == (29, 2, [2])


def test_rows_end_at_different_lengths(case: Case) -> None:
    """Of the library's own answers: else the tests below would show less than they say."""
    lengths = (case.tokens != PAD).sum(axis=1)
    assert len(set(lengths)) > 1
    assert max(lengths) == 29


def test_greedy_search_in_torch(case: Case) -> None:
    found = model_runner(case.model)({"pixel_values": case.pixels.numpy()})
    np.testing.assert_array_equal(found["text"], case.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_greedy_search_is_the_librarys(case: Case, tmp_path: Path, target: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    with opened(bundle(case.model, tmp_path, target)) as session:
        feed = session.processor.feed({"image": PICTURES})
        np.testing.assert_allclose(feed["pixel_values"], case.pixels, atol=1e-5)
        np.testing.assert_array_equal(session.run(feed)["text"], case.tokens)
        found = session.ask({"image": PICTURES})["text"]
        assert found == tokenizer.batch_decode(case.tokens, skip_special_tokens=True)
        assert session.ask({"image": PICTURES[2]}) == {"text": found[2]}


def test_positions_of_sines(tmp_path: Path) -> None:
    """TrOCR's other positions, which are no weights: the library's own reader leaves them without values."""
    folder = reader(tmp_path / "it", "trocr", use_learned_position_embeddings=False)
    reference = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    fresh = transformers.TrOCRForCausalLM(reference.config.decoder)
    reference.decoder.model.decoder.embed_positions = fresh.model.decoder.embed_positions
    pixels = transformers.ViTImageProcessorPil.from_pretrained(folder)(PICTURES, return_tensors="pt")["pixel_values"]
    found = model_runner(compress.load(folder))({"pixel_values": pixels.numpy()})
    np.testing.assert_array_equal(found["text"], generated(reference, 1, pixel_values=pixels))


@pytest.mark.parametrize(("file", "values", "message"), [
    ("config.json", {"decoder": {"model_type": "bart"}}, "its decoder is of the model_type 'bart': read are bert"),
    ("config.json", {"encoder": {"model_type": "swin"}}, "its encoder is of the model_type 'swin': read are deit, vit"),
    ("generation_config.json", {"repetition_penalty": 1.5}, "sets repetition_penalty to 1.5, which greedy search"),
    ("generation_config.json", {"decoder_start_token_id": None}, "has no decoder_start_token_id: set it in"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    folder = reader(tmp_path / "it", "gpt2")
    change(folder, file, **values)
    with pytest.raises(compress.CompressError, match=message):
        compress.load(folder)


def test_what_is_missing(tmp_path: Path) -> None:
    folder = reader(tmp_path / "it", "gpt2", vocab_size=60)
    with pytest.raises(compress.CompressError, match=r"the tokenizer gives ids up to 6., but the embedding has 60"):
        compress.load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(compress.CompressError, match="has no image processor: expected preprocessor_config"):
        compress.load(folder)
