"""Models lose the tokens that no data uses: their texts still become ids, and their outputs stay what they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import compress
from calibration import CalibrationSet, open_set, write
from compress.cli import cli
from compress.described import described
from compress.distill.vocabulary import check_meanings
from compress.errors import CompressError
from compress.factory import build_module
from compress.loading import load
from compress.model import Input, Model, ModelProcessing
from compress.processing import read_processing
from compress.program import model_runner
from compress.prune import PruneConfig, load_into, prune
from compress.prune.usage import Uses, always_kept, read_texts
from compress.zoo.digits_questions import PROCESSING, VOCABULARY
from runtimes.errors import FeedError
from runtimes.processing.processor import Processor
from runtimes.processing.record import Processing
from runtimes.processing.text import TextInput
from runtimes.spec import Dim
from tests.compress import captioner
from tests.compress.huggingface.folders import bert, bundle, clip, opened, picture, siglip
from tests.compress.huggingface.generators import reader, whisper

USED = PruneConfig(vocabulary="used")
SMALL = {"width": 16, "head_dim": 8, "image_heads": (2,), "image_hidden": (16,), "text_heads": (2,),
         "text_hidden": (16,), "fusion_heads": (2,), "fusion_hidden": (16,)}
ASKED = ["what digit is it ?", "is it even ?", "is the digit a prime ?"]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The demo's network, small, of a file."""
    torch.manual_seed(0)
    from compress.zoo.digits_vqa import build

    path = tmp_path_factory.mktemp("asking") / "model.pt"
    return compress.save(
        build(**SMALL), path, factory="compress.zoo.digits_vqa:build", factory_kwargs=SMALL, processing=PROCESSING,
        example={"image": np.zeros((2, 1, 8, 8), np.float32), "question": np.arange(24).reshape(2, 12)},
        inputs={"question": Input(modality="text", dims=("batch", Dim("length", 4, 12, 12)))})


def asked(model: Model, texts: list[str]) -> dict[str, np.ndarray]:
    pictures = [np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8) for seed in range(len(texts))]
    return Processor(described(model)).feed({"image": pictures, "question": texts})


def data_of(model: Model, feed: dict[str, np.ndarray]) -> CalibrationSet:
    return open_set([feed], model.inputs, name="texts")


def test_words_that_no_question_has_go(asking: Model, tmp_path: Path) -> None:
    feed = asked(asking, ASKED)
    result = prune(asking, data_of(asking, feed), USED)
    words = {"[padding]", *" ".join(ASKED).split()}
    (one,) = result.vocabularies
    assert (one.name, one.before, one.after, one.heads, one.covered) == (
        "text_encoder.embedding", 40, len(words) + 1, (), 1.0)      # and a row for all the others
    assert result.components[1].params_before - result.components[1].params_after == (40 - one.after) * 16
    assert result.groups == ()
    compress.modelfile.write_model(result.model, tmp_path / "small.pt")
    small = load(tmp_path / "small.pt")
    expected = model_runner(asking)(feed)["output"]
    for found in (model_runner(small), lambda feed: {"output": build_module(small)(**{
            name: torch.from_numpy(value) for name, value in feed.items()}).detach().numpy()}):
        np.testing.assert_array_equal(found(feed)["output"], expected)
    # the device's texts are the same ids, and a word that is gone is refused as one that never was
    np.testing.assert_array_equal(asked(small, ASKED)["question"], feed["question"])
    with pytest.raises(FeedError, match="'square', which is not in the model's vocabulary"):
        asked(small, ["is it a square ?"])
    check_meanings("student and teacher", small, asking)            # it can be distilled from the whole one


def test_rows_go_by_how_often_they_are_used(asking: Model) -> None:
    """Padding and "?" 5 times or more, "is" and "it" 3 times, others fewer."""
    data = data_of(asking, asked(asking, ["what is it ?", "which is it ?", "is it odd or odd ?"]))
    result = prune(asking, data, PruneConfig(vocabulary="6", round_to=8))
    (one,) = result.vocabularies
    assert one.after == 6
    assert result.model.weights["text_encoder.embedding.rows"].tolist() == [
        {"[padding]": 0, "?": 1, "is": 2, "it": 3, "odd": 4}.get(word, 5)
        for word in [*VOCABULARY, "", "", ""]]
    used = 3 * 6
    assert one.covered == pytest.approx((used - 3) / used)          # without "what", "which" and "or"


def test_with_other_goals(asking: Model) -> None:
    config = PruneConfig(vocabulary="used", params=0.8, round_to=4)
    result = prune(asking, data_of(asking, asked(asking, ASKED)), config)
    before, after = (sum(p.numel() for p in m.module.parameters()) for m in (asking, result.model) if m.module)
    assert after <= 0.8 * before
    assert result.groups
    assert [one.after for one in result.vocabularies] == [len({"[padding]", *" ".join(ASKED).split()}) + 1]
    assert result.to_json()["vocabularies"][0]["before"] == 40
    fresh = load_into(build_module(asking), result.model)
    feed = asked(asking, ASKED)
    found = fresh(**{name: torch.from_numpy(value) for name, value in feed.items()}).detach().numpy()
    np.testing.assert_allclose(found, model_runner(result.model)(feed)["output"], atol=1e-6)


def test_the_command(asking: Model, tmp_path: Path) -> None:
    compress.modelfile.write_model(asking, tmp_path / "model.pt")
    write(tmp_path / "data", asked(asking, ASKED))
    (tmp_path / "corpus.txt").write_text("Which number is this?\n")
    shown = CliRunner().invoke(cli, [
        "prune", str(tmp_path / "model.pt"), "--data", str(tmp_path / "data"), "--vocabulary", "used", "--corpus",
        str(tmp_path / "corpus.txt"), "--quiet"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    left = len({"[padding]", "which", "number", "this", *" ".join(ASKED).split()}) + 1
    assert f"text_encoder.embedding: {left} of 40 rows are left, 100.00% of the data's tokens" in shown.output
    assert load(tmp_path / "model.pruned.pt").weights["text_encoder.embedding.weight"].shape[0] == left


def test_it_is_quantized_as_ever(asking: Model) -> None:
    data = data_of(asking, asked(asking, ASKED))
    small = prune(asking, data, USED).model
    found, expected = (model_runner(compress.quantize(m, data, scheme="x86-vnni").model)(asked(asking, ASKED))["output"]
                       for m in (small, asking))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "texts", "other", "gone"), [
    (bert, ["the", "a b"], "dogs and a photo", {"photo", "dog"}),
    (clip, ["a cat", "the"], "the dog", {"do", "dog</w>"}),
    (siglip, ["a photo", "a the"], "the dog", {"▁dog", "<pad>"}),
])
def test_pieces_that_no_text_has_go(
    tmp_path: Path, make: Callable[[Path], Path], texts: list[str], other: str, gone: set[str],
) -> None:
    """Another text is split into pieces that are left, and decoding gives it back."""
    model = load(make(tmp_path / "folder"))
    pictures = {} if make is bert else {"image": [picture(seed=seed) for seed in range(2)]}
    feed = Processor(described(model)).feed({"text": texts, **pictures})
    result = prune(model, data_of(model, feed), USED)
    (one,) = result.vocabularies
    lost = one.before - one.after
    if make is not bert:                        # whose configuration has three rows more than its tokenizer words
        assert lost == len(gone) - (make is clip)
    small = Processor(described(result.model))
    np.testing.assert_array_equal(small.feed({"text": texts, **pictures})["input_ids"], feed["input_ids"])
    for name, value in model_runner(model)(feed).items():
        np.testing.assert_array_equal(model_runner(result.model)(feed)[name], value)
    import tokenizers

    assert result.model.processing is not None
    before, after = (tokenizers.Tokenizer.from_str(m.processing.files["tokenizer.json"].decode())  # type: ignore[union-attr]
                     for m in (model, result.model))
    assert not gone & after.get_vocab().keys()
    assert gone <= before.get_vocab().keys()
    rows = next(value for name, value in result.model.weights.items() if name.endswith(".rows"))
    ids = after.encode(other).ids
    assert ids != before.encode(other).ids
    assert len({int(rows[number]) for number in ids}) == len(set(ids))      # each has a row of its own
    assert after.decode(ids).replace(" ", "") == before.decode(before.encode(other).ids).replace(" ", "")


CORPUS = "the dog\n\na photo of cats\n"


@pytest.mark.parametrize(("make", "table"), [
    (whisper, "model.model.decoder.embed_tokens"),
    pytest.param(lambda folder: reader(folder, "gpt2"), "model.decoder.transformer.wte", marks=pytest.mark.slow),
    pytest.param(lambda folder: reader(folder, "bert"), "model.decoder.bert.embeddings.word_embeddings",
                 marks=pytest.mark.slow),
])
def test_a_generator_says_what_its_corpus_has(tmp_path: Path, make: Callable[[Path], Path], table: str) -> None:
    model = load(make(tmp_path / "folder"))
    (tmp_path / "corpus.txt").write_text(CORPUS)
    samples = noisy(model)
    result = prune(model, samples, PruneConfig(vocabulary="used", round_to=1), corpus=tmp_path / "corpus.txt")
    (one,) = result.vocabularies
    assert (one.name, len(one.heads)) == (table, 1)
    assert one.after < one.before
    feed = samples.first(4)
    np.testing.assert_array_equal(model_runner(result.model)(feed)["text"], model_runner(model)(feed)["text"])
    assert result.model.chain == model.chain                # ids of prompts, stops and what is never said are the same


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize("make", [clip, whisper])
def test_engines(tmp_path: Path, make: Callable[[Path], Path], target: str) -> None:
    model = load(make(tmp_path / "folder"))
    (tmp_path / "corpus.txt").write_text(CORPUS)
    result = prune(model, noisy(model), USED, corpus=tmp_path / "corpus.txt")
    feed = noisy(model).first(2)
    with opened(bundle(result.model, tmp_path, target)) as session:
        for name, expected in model_runner(result.model)(feed).items():
            np.testing.assert_allclose(session.run(feed)[name], expected, rtol=1e-3, atol=1e-4)


def noisy(model: Model) -> CalibrationSet:
    """Noise, and ids of a small part of the vocabulary."""
    generator, feed = np.random.default_rng(0), {}
    for spec in model.inputs:
        value = np.concatenate([model.example[spec.name]] * 2)
        feed[spec.name] = (value + generator.standard_normal(value.shape).astype(value.dtype)
                           if value.dtype.kind == "f" else value)
    return open_set([feed], model.inputs, name="noisy")


# --- decoders with labels ---------------------------------------------------------------------------------------------

WORDS = ["[pad]", "[begin]", "[end]", *(f"w{number}" for number in range(17))]
SAYING = {"inputs": {}, "outputs": {"caption": {
    "kind": "text", "scores": False, "vocabulary": {"words": WORDS}, "stop": 2, "skip": [0, 1]}}}


def labelled(model: Model, *texts: str) -> CalibrationSet:
    feed: dict[str, Any] = {"image": captioner.pictures(24)}
    if texts:
        feed["target"] = np.array([texts[number % len(texts)] for number in range(24)])
    return open_set([feed], model.inputs, name="pictures")


def test_labels_are_what_a_decoder_is_to_say() -> None:
    model = captioner.model(processing=read_processing(SAYING))
    data = labelled(model, "w0 w1 w2", "w16")
    picked = {number for row in model_runner(model)(data.first(16))["caption"] for number in row}
    result = prune(model, data, PruneConfig(vocabulary="used", round_to=1, samples=16))
    kept = sorted({0, 1, 2, 3, 4, 5, 19} | picked)
    (one,) = result.vocabularies
    assert (one.name, one.heads, one.after) == ("words", ("head",), len(kept) + 1)
    assert result.model.weights["head.weight"].shape[0] == len(kept)
    assert np.flatnonzero(result.model.weights["head.places"].numpy() < len(kept)).tolist() == kept
    np.testing.assert_array_equal(model_runner(result.model)(data.first(5))["caption"],
                                  model_runner(model)(data.first(5))["caption"])


def test_outputs_come_in_what_kernels_like() -> None:
    model = captioner.model(processing=read_processing(SAYING))
    result = prune(model, labelled(model, "w0"), PruneConfig(vocabulary=9, round_to=4, samples=24))
    assert (len(result.model.weights["head.weight"]), result.vocabularies[0].after) == (8, 9)
    result = prune(model, labelled(model, "w0"), PruneConfig(vocabulary=8, round_to=4, samples=24))
    assert (len(result.model.weights["head.weight"]), result.vocabularies[0].after) == (4, 5)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_pruned_is_told(asking: Model, tmp_path: Path) -> None:
    data = data_of(asking, asked(asking, ASKED))
    with pytest.raises(CompressError, match="vocabulary='all': give 'used', or the most rows that may stay"):
        PruneConfig(vocabulary="all")
    with pytest.raises(CompressError, match="vocabulary=0: give 'used'"):
        PruneConfig(vocabulary=0)
    with pytest.raises(CompressError, match=r"vocabulary=1: 'text_encoder\.embedding\' needs 2 rows for special"):
        prune(asking, data, PruneConfig(vocabulary=1))
    with pytest.raises(CompressError, match="a corpus says which tokens are used: give a vocabulary too"):
        prune(asking, data, corpus=tmp_path)
    entry = TextInput(from_="text", tokenizer="a.json", pad_id=0)
    files = dict.fromkeys(("a.json", "b.json"), b'{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    other = dataclasses.replace(entry, tokenizer="b.json")
    two = Uses(inputs=(), reads=(("x", entry), ("y", other)), loops=(), writes=())
    with pytest.raises(CompressError, match=r"several tokenizers make the ids of 'table' \(a\.json, b\.json\): which"):
        always_kept(two, ModelProcessing(section=Processing(inputs={}, outputs={}), files=files), "table")
    small = prune(asking, data, USED).model
    with pytest.raises(CompressError, match=r"the vocabulary of model .* is pruned already"):
        prune(small, data, USED)


def test_a_decoder_without_texts_is_refused() -> None:
    model = captioner.model(processing=read_processing(SAYING))
    with pytest.raises(CompressError, match=r"what 'head' is to say is known from texts alone, .* give a corpus"):
        prune(model, labelled(model), USED)


def test_a_model_whose_inputs_are_no_texts_is_refused(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    model = compress.save(net, tmp_path / "m.pt", example={"input": np.zeros((2, 3), np.float32)})
    with pytest.raises(CompressError, match="vocabulary=used: no input of model 'Linear' that is a text's ids goes to"):
        prune(model, open_set([model.example], model.inputs), USED)


class Bag(torch.nn.Module):
    """Ids alone: what they mean is not said."""

    def __init__(self, rows: int = 300, *, reads_table: bool = False) -> None:
        super().__init__()
        self.table, self.out, self.reads_table = torch.nn.Embedding(rows, 4), torch.nn.Linear(4, 2), reads_table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.table(ids).mean(1)
        return states @ self.table.weight.T if self.reads_table else self.out(states)


def test_ids_alone_need_no_tokenizer(tmp_path: Path) -> None:
    """Their numbers stay; what a corpus says of them is not known."""
    model = compress.save(Bag(), tmp_path / "m.pt", example={"ids": np.array([[0, 1], [7, 299]])})
    data = open_set([{"ids": np.array([[5, 9], [5, 299]])}], model.inputs)
    result = prune(model, data, USED)
    assert result.vocabularies[0].after == 4
    np.testing.assert_array_equal(
        model_runner(result.model)(data.first(2))["output"], model_runner(model)(data.first(2))["output"])
    (tmp_path / "corpus.txt").write_text("words\n")
    with pytest.raises(CompressError, match="the ids of 'table' have no tokenizer in the model's processing, so a c"):
        prune(model, data, USED, corpus=tmp_path / "corpus.txt")
    categories = compress.save(Bag(rows=20), tmp_path / "m.pt", example={"ids": np.array([[0, 1], [7, 19]])})
    with pytest.raises(CompressError, match="no input of model 'Bag' that is a text's ids"):
        prune(categories, open_set([{"ids": np.array([[5, 9]])}], categories.inputs), USED)


def test_a_table_that_is_read_otherwise_is_left_whole(tmp_path: Path) -> None:
    model = compress.save(Bag(reads_table=True), tmp_path / "m.pt", example={"ids": np.array([[0, 1], [7, 299]])})
    with pytest.raises(CompressError, match=r"rows of table would change the function .* output forward/0 has shape "
                                            r"\(1, 3\) instead of \(1, 300\)\. Nothing was pruned"):
        prune(model, open_set([{"ids": np.array([[5, 9]])}], model.inputs), USED)


def test_a_corpus_is_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.txt").write_text("one\n\n  three \n")
    assert list(read_texts(tmp_path)) == ["one", "three", "two"]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CompressError, match=r"corpus .*a\.txt cannot be read as text: 'utf-8' codec"):
        list(read_texts(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompressError, match=r"empty has no texts: give a text file, or a folder of \.txt files"):
        list(read_texts(tmp_path / "empty"))
