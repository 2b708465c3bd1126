"""A BERT folder: the library's tokens, its outputs from the engines, answers, int8, and a file without the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import calibration
import compress
from compress.model import Model
from compress.modelfile import write_model
from compress.program import run_program
from compress.targets import get_target
from runtimes.backends import open_engine
from runtimes.errors import FeedError
from runtimes.spec import Dim
from tests.compress.huggingface.folders import TARGETS, TEXTS, bert, bundle, opened, same, transformers

LONG = "the quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert") / "it")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return compress.load(folder)


@pytest.fixture(scope="module", params=TARGETS)
def made(model: Model, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(model, tmp_path_factory.mktemp("bundle"), request.param)


def test_what_is_found(model: Model) -> None:
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(spec.shape == (Dim("batch", 1, 1, 64), Dim("length", 1, 24, 24)) for spec in model.inputs)
    assert [spec.modality for spec in model.inputs] == ["text"] * 3
    assert [(spec.name, spec.describe()) for spec in model.outputs] == [("logits", "float32[batch=1..64, 3]")]
    assert model.components == {"text_encoder": "model.bert", "classifier": "model.classifier"}
    assert model.labels == {"logits": ("no", "yes", "so so")}
    assert model.component_of("model.bert.encoder.layer.0.attention.self.query") == "text_encoder"


def test_tokens_outputs_and_answers_are_the_librarys(folder: Path, made: Path) -> None:
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    reference = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    with opened(made) as session:
        for texts in (TEXTS[:1], TEXTS, [LONG]):
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            feed = session.processor.feed({"text": texts})
            assert feed.keys() == tokens.keys()
            for name, value in tokens.items():
                np.testing.assert_array_equal(feed[name], value)
            with torch.no_grad():
                logits = reference(**tokens).logits
            same(session.run(feed), {"logits": logits})
            answers = session.ask({"text": texts})["logits"]
            assert [answer["label"] for answer in answers] == [
                reference.config.id2label[int(index)] for index in logits.argmax(-1)]
        score = float(logits.softmax(-1).max())
        assert session.ask({"text": LONG})["logits"]["score"] == pytest.approx(score, abs=1e-4)
        with pytest.raises(FeedError, match=r"'text' .* tokens, more than 24"):
            session.ask({"text": LONG * 8})


def test_quantized(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {"input_ids": rng.integers(5, 30, (8, 12)), "attention_mask": np.ones((8, 12), np.int64),
               "token_type_ids": np.zeros((8, 12), np.int64)}  # fmt: skip
    calibration.write(tmp_path / "data", samples)
    data = calibration.open_set(tmp_path / "data", model.inputs)
    quantized = compress.quantize(model, data, scheme=get_target("onnxruntime-cpu").scheme).model
    engine = compress.export(quantized, get_target("onnxruntime-cpu"), tmp_path / "engine")
    assert engine.precision == "int8"
    runner = open_engine(engine)
    feed = data.first(4)
    exact = run_program(model, feed)["logits"]
    found = runner.run(feed)["logits"]
    runner.close()
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(found - exact).max() > 1e-5      # it is not the float network


@pytest.mark.slow
def test_its_file_exports_without_the_library(model: Model, tmp_path: Path) -> None:
    write_model(model, tmp_path / "it.pt")
    np.savez(tmp_path / "expected.npz", **run_program(model, model.example))
    code = f"""
import sys
sys.modules["transformers"] = None
import numpy as np, compress
from compress.targets import get_target
from runtimes.backends import open_engine
model = compress.load({str(tmp_path / "it.pt")!r})
engine = compress.export(model, get_target("onnxruntime-cpu"), __import__("pathlib").Path({str(tmp_path / "engine")!r}))
found = open_engine(engine).run(model.example)["logits"]
np.testing.assert_allclose(found, np.load({str(tmp_path / "expected.npz")!r})["logits"], atol=1e-4)
assert model.processing.files.keys() == {{"tokenizer.json"}}
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_base(tmp_path: Path) -> None:
    model = compress.load(bert(tmp_path / "base", "BertModel"))
    assert model.components == {"text_encoder": "model"}
    assert [spec.describe() for spec in model.outputs] == [
        "float32[batch=1..64, length=1..24, 32]", "float32[batch=1..64, 32]"]
    reference = transformers.BertModel.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        expected = reference(**{name: torch.from_numpy(value) for name, value in model.example.items()})
    same(run_program(model, model.example), expected)
