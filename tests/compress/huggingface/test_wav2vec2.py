"""A Wav2Vec2 folder: the library's samples, its outputs from the engines at any length, transcripts and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from compress.program import run_program
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, change, opened, same, speech, transformers, wav2vec2

LENGTHS = (0.5, 0.31, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("masked", [False, True])
def test_transcripts_are_the_librarys(tmp_path: Path, masked: bool, target: str) -> None:
    folder = wav2vec2(tmp_path / "it", masked=masked)
    model = compress.load(folder)
    assert model.components == {"audio_encoder": "model.wav2vec2", "lm_head": "model.lm_head"}
    assert [spec.name for spec in model.inputs] == ["input_values", *(["attention_mask"] if masked else [])]
    assert all(spec.shape == (Dim("batch", 1, 1, 64), Dim("samples", 325, 16000, 480000)) for spec in model.inputs)
    processor = transformers.Wav2Vec2Processor.from_pretrained(folder)
    reference = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
    # Without a mask the library's values of a sound depend on those beside it: one at a time.
    sounds = [speech(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    seen = []
    with opened(bundle(model, tmp_path, target)) as session:
        for batch in [[sound] for sound in sounds] + ([sounds] if masked else []):
            values = processor(batch, sampling_rate=16000, return_tensors="pt", padding=True)
            feed = session.processor.feed({"audio": batch})
            assert feed.keys() == values.keys()
            for name, value in values.items():
                np.testing.assert_allclose(feed[name], value, atol=1e-4)
            with torch.no_grad():
                logits = reference(**values).logits
            same(session.run(feed), {"logits": logits}, within=1e-3)
            texts = processor.batch_decode(logits.argmax(-1))
            assert session.ask({"audio": batch})["logits"] == texts
            seen += texts
    assert max(map(len, seen)) > 3


@pytest.mark.parametrize("masked", [False, True])
def test_labels_are_the_librarys(tmp_path: Path, masked: bool) -> None:
    folder = wav2vec2(tmp_path / "it", "Wav2Vec2ForSequenceClassification", masked=masked)
    model = compress.load(folder)
    assert model.labels == {"logits": ("stop", "go")}
    assert list(model.components) == ["audio_encoder", "projector", "classifier"]
    reference = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    for count, length in ((1, 325), (3, 7001)):
        feed = {"input_values": rng.standard_normal((count, length)).astype(np.float32)}
        if masked:
            feed["attention_mask"] = (np.arange(length) < length - 100 * np.arange(count)[:, None]).astype(np.int64)
        with torch.no_grad():
            expected = reference(**{name: torch.from_numpy(value) for name, value in feed.items()})
        same(run_program(model, feed), {"logits": expected.logits})


def test_base(tmp_path: Path) -> None:
    model = compress.load(wav2vec2(tmp_path / "it", "Wav2Vec2Model"))
    reference = transformers.Wav2Vec2Model.from_pretrained(tmp_path / "it").eval()
    with torch.no_grad():
        expected = reference(torch.from_numpy(model.example["input_values"]))
    same(run_program(model, model.example), {"last_hidden_state": expected.last_hidden_state})


def test_what_is_refused(tmp_path: Path) -> None:
    folder = wav2vec2(tmp_path / "it")
    (folder / "vocab.json").write_text('{"<pad>": 0, "a": 1, "|": 2}')
    change(folder, "tokenizer_config.json", added_tokens_decoder=None)
    with pytest.raises(compress.CompressError, match=r"the tokenizer has . tokens, but the network scores 15"):
        compress.load(folder)
    change(folder, "preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor")
    with pytest.raises(compress.CompressError, match="is a WhisperFeatureExtractor, not a Wav2Vec2FeatureExtractor"):
        compress.load(folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(compress.CompressError, match="has no feature extractor: expected preprocessor_config"):
        compress.load(folder)
