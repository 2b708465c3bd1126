"""A Whisper folder: the library's features, its greedy search token for token from cached engines, and its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.huggingface.folder import read_folder
from compress.huggingface.whisper import start_tokens
from compress.model import Model
from compress.program import model_runner
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, change, opened, speech, transformers
from tests.compress.huggingface.generators import (
    END,
    ENGLISH,
    GERMAN,
    PLAIN,
    PROMPT,
    START,
    TRANSCRIBE,
    TRANSLATE,
    generated,
    whisper,
)

STOP = 239      # of the letters one that this network writes in some rows early, in others late or never
SEARCH = {"eos_token_id": STOP, "begin_suppress_tokens": [5, STOP],
          "suppress_tokens": [1, 2, 3, *range(PLAIN + 1, 273)]}     # points in time, with which the library goes on
SOUNDS = [speech(seconds, seed) for seed, seconds in enumerate((0.4, 1.0, 0.7, 1.3, 0.2, 0.9))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper(tmp_path_factory.mktemp("whisper") / "it", generation=SEARCH)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[Any, np.ndarray]:
    """The library's features of the sounds, and the tokens it picks behind the four it begins with."""
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(SOUNDS, sampling_rate=16000, return_tensors="pt")["input_features"]
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokens = generated(reference, 4, input_features=features, language="en", force_unique_generate_call=True)
    return features, tokens


def test_what_is_found(model: Model) -> None:
    batch = Dim("batch", 1, 1, 64)
    assert [spec.shape for spec in model.graphs["encoder"].inputs] == [(batch, 16, 100)]
    shapes = {spec.name: spec.shape for spec in model.graphs["decoder"].inputs}
    assert shapes["input_ids"] == (batch, Dim("length", 1, 4, 40))
    assert shapes["past_key_1"] == (batch, 4, Dim("past", 0, 18, 39), 8)
    assert shapes["cross_value_0"] == (batch, 4, Dim("states", 1, 50, 50), 8)
    assert shapes["cross_key_0"] == (batch, 4, 8, Dim("states", 1, 50, 50))     # as it is multiplied
    assert [spec.describe() for spec in model.graphs["encoder"].outputs] == [
        "float32[batch=1..64, 4, 8, 50]", "float32[batch=1..64, 4, 50, 8]"] * 2
    assert [spec.name for spec in model.inputs] == ["input_features"]
    assert [spec.name for spec in model.outputs] == ["text"]
    assert list(model.components) == ["audio_encoder", "text_decoder", "lm_head"]
    assert model.chain is not None
    loop = model.chain["steps"][1]["loop"]
    assert (loop["start"], loop["stop"], loop["pad"]) == ([START, ENGLISH, TRANSCRIBE, PLAIN], [STOP], END)
    assert (loop["max_steps"], loop["suppress"], loop["suppress_first"]) == (
        36, SEARCH["suppress_tokens"], SEARCH["begin_suppress_tokens"])


def test_rows_end_at_different_lengths(expected: tuple[Any, np.ndarray]) -> None:
    """Of the library's own answers: else the tests below would show less than they say."""
    lengths = (expected[1] != END).sum(axis=1)
    assert len(set(lengths)) > 2
    assert max(lengths) == 36


def test_greedy_search_in_torch(model: Model, expected: tuple[Any, np.ndarray]) -> None:
    features, tokens = expected
    np.testing.assert_array_equal(model_runner(model)({"input_features": features.numpy()})["text"], tokens)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_greedy_search_is_the_librarys(
    folder: Path, model: Model, expected: tuple[Any, np.ndarray], tmp_path: Path, target: str
) -> None:
    features, tokens = expected
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    texts = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    with opened(bundle(model, tmp_path, target)) as session:
        feed = session.processor.feed({"audio": SOUNDS})
        np.testing.assert_allclose(feed["input_features"], features, atol=1e-4)
        np.testing.assert_array_equal(session.run(feed)["text"], tokens)
        for row in range(len(SOUNDS)):      # alone, a row ends with its stop token
            alone = session.run({"input_features": feed["input_features"][row : row + 1]})["text"][0]
            np.testing.assert_array_equal(alone, tokens[row][: len(alone)])
            assert len(alone) == 36 or alone[-1] == STOP
        found = session.ask({"audio": SOUNDS})["text"]
        assert [text.replace(chr(0xFFFD), "") for text in found] == [t.replace(chr(0xFFFD), "") for t in texts]
        assert session.ask({"audio": SOUNDS[0]}) == {"text": found[0]}


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, [START, ENGLISH, TRANSCRIBE, PLAIN]),
    ({"language": "german"}, [START, GERMAN, TRANSCRIBE, PLAIN]),
    ({"language": "<|de|>", "task": "translate"}, [START, GERMAN, TRANSLATE, PLAIN]),
    ({"task": "translate"}, [START, ENGLISH, TRANSLATE, PLAIN]),
    ({"forced_decoder_ids": [[1, GERMAN], [2, TRANSLATE]]}, [START, GERMAN, TRANSLATE, PLAIN]),
    ({"forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]}, [START, ENGLISH, TRANSCRIBE, PLAIN]),
    ({"lang_to_id": None, "task_to_id": None, "forced_decoder_ids": [[1, PLAIN]]}, [START, PLAIN]),
    ({"lang_to_id": None, "task_to_id": None}, [START, PLAIN]),
    ({"lang_to_id": None, "task_to_id": None, "no_timestamps_token_id": None}, [START]),
])  # fmt: skip
def test_the_first_tokens(tmp_path: Path, settings: dict[str, Any], expected: list[int]) -> None:
    """As the library makes them (``_retrieve_init_tokens``), but for the language that it would listen for."""
    record = {key: value for key, value in {**PROMPT, **settings}.items() if value is not None}
    folder = whisper(tmp_path / "it", generation={"max_length": 40})
    (folder / "generation_config.json").unlink()
    transformers.GenerationConfig(**record).save_pretrained(folder)
    read = read_folder(folder)
    config = read.built_config("WhisperConfig")
    assert start_tokens(read, config) == expected
    settings_read = transformers.GenerationConfig.from_pretrained(folder)
    settings_read.return_timestamps = False
    if settings_read.to_dict().get("lang_to_id") and expected[1] == ENGLISH:
        settings_read.language = "en"
    reference = transformers.WhisperForConditionalGeneration(config)
    theirs = reference._retrieve_init_tokens(None, 1, settings_read, config, 100, {})
    assert theirs.tolist() == [expected]


@pytest.mark.parametrize(("file", "values", "message"), [
    ("generation_config.json", {"language": "klingon"}, r"the language '<\|klingon\|>' is none of this model's: <\|de"),
    ("generation_config.json", {"task": "sing"}, "the task 'sing' is none of this model's: transcribe, translate"),
    ("generation_config.json", {"lang_to_id": None, "language": "en"}, "it has no choice of it"),
    ("generation_config.json", {"no_repeat_ngram_size": 2}, "sets no_repeat_ngram_size to 2, which greedy search"),
    ("generation_config.json", {"eos_token_id": 999}, "stop has the token 999, but the network scores 273"),
    ("preprocessor_config.json", {"dither": 0.1}, "its feature extractor adds noise"),
    ("preprocessor_config.json", {"feature_size": 20}, "gives 20 features of 100 frames, but the encoder takes 16 of"),
    ("preprocessor_config.json", {"chunk_length": 2}, "gives 16 features of 200 frames, but the encoder takes 16 of"),
    ("config.json", {"vocab_size": 200}, "the tokenizer gives ids up to 269, but the embedding has 200 rows"),
    ("config.json", {"decoder_ffn_dim": 48}, r"weight 'model.decoder.layers.0.fc1.bias' has the shape"),
    ("config.json", {"decoder_layers": 1}, r"it has 'model.decoder.layers.1.*which the network does not"),
    ("config.json", {"decoder_layers": 3}, r"it lacks 'model.decoder.layers.2"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    it = whisper(tmp_path / "it")
    change(it, file, **values)
    with pytest.raises(compress.CompressError, match=message):
        compress.load(it)


def test_what_is_missing(tmp_path: Path) -> None:
    it = whisper(tmp_path / "it")
    (it / "preprocessor_config.json").unlink()
    with pytest.raises(compress.CompressError, match="has no feature extractor: expected preprocessor_config"):
        compress.load(it)
    for name in ("tokenizer.json", "vocab.json"):
        (it / name).unlink(missing_ok=True)
    with pytest.raises(compress.CompressError, match=r"has no tokenizer: expected tokenizer.json"):
        compress.load(it)


def test_a_head_of_its_own(tmp_path: Path) -> None:
    """The scores are those of the embedding; a checkpoint may hold that once more, and is read alike."""
    it = whisper(tmp_path / "it")
    weights = load_file(it / "model.safetensors")
    assert "proj_out.weight" not in weights
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"].clone()
    save_file(weights, it / "model.safetensors", {"format": "pt"})
    loaded = compress.load(it).weights
    torch.testing.assert_close(loaded["model.proj_out.weight"], weights["model.decoder.embed_tokens.weight"])
