"""A CLAP folder: two graphs whose answer, zero-shot labels among them, is the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.model import Model
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, bundle, change, clap, opened, same, speech, transformers

LABELS = ["a dog", "the sound of rain", "music"]
SOUNDS = [speech(1.2, 0), speech(6.0, 1), speech(3.1, 2)]       # at 48 kHz a third as long: 0.4 s, 2 s, 1 s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clap(tmp_path_factory.mktemp("clap") / "it")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


def test_what_is_found(model: Model) -> None:
    batch = Dim("batch", 1, 1, 64)
    assert model.graphs["audio"].inputs[0].shape == (batch, 1, 201, 16)
    assert model.graphs["text"].inputs[0].shape == (batch, Dim("length", 1, 16, 32))    # of 34 positions two are not
    assert list(model.components) == ["audio_encoder", "audio_projection", "text_encoder", "text_projection"]


@pytest.mark.parametrize("target", TARGETS)
def test_zero_shot_is_the_librarys(folder: Path, model: Model, tmp_path: Path, target: str) -> None:
    reference = transformers.ClapModel.from_pretrained(folder).eval()
    tokens = transformers.RobertaTokenizer.from_pretrained(folder)(LABELS, padding=True, return_tensors="pt")
    features = transformers.ClapFeatureExtractor.from_pretrained(folder)(
        SOUNDS, sampling_rate=48000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = reference(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], input_features=features)
    with opened(bundle(model, tmp_path, target)) as session:
        feed = session.processor.feed({"audio": SOUNDS, "text": LABELS})
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(feed[name], tokens[name])
        np.testing.assert_allclose(feed["input_features"], features, atol=1e-4)
        found = session.run(feed)
        for name in ("audio_embeds", "text_embeds"):    # the library's are of length one
            ours = found[name] / np.linalg.norm(found[name], axis=-1, keepdims=True)
            same({name: ours}, {name: expected[name]}, within=1e-3)
        scores = expected.logits_per_audio.softmax(-1).numpy()
        np.testing.assert_allclose(session.ask({"audio": SOUNDS, "text": LABELS})["match"], scores, atol=1e-3)
        assert np.ptp(scores) > 0.05


@pytest.mark.parametrize(("file", "values", "message"), [
    ("preprocessor_config.json", {"truncation": "fusion"}, "has truncation 'fusion' and padding 'repeatpad'"),
    ("preprocessor_config.json", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
     "its feature extractor is a Wav2Vec2FeatureExtractor, not a ClapFeatureExtractor"),
    ("config.json", {"audio_config": {"enable_fusion": True}}, "fuses parts of long sounds"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    folder = clap(tmp_path / "it")
    change(folder, file, **values)
    with pytest.raises(compress.CompressError, match=message):
        compress.load(folder)
