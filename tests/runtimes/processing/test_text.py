"""Strings to ids and back: a list of words, and tokenizer.json files that tokenizers itself writes and reads."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing import parse_processing
from runtimes.processing.text import MOST_CHARACTERS
from runtimes.spec import Dim
from tests.runtimes.processing.describing import processor, spec

WORDS = {"words": ["[padding]", "?", "is", "it", "even"], "lowercase": True, "separate": "?"}
LENGTH = Dim("length", 4, 8, 12)
TEXTS = ["a photo of a cat", "two dogs", "the quick brown fox jumps over the lazy dog", "naïve café, no?"]


def bert() -> tokenizers.Tokenizer:
    """WordPiece with [CLS] and [SEP], learned from a few sentences."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return made


def words_input(length: Dim | int = LENGTH, dtype: str = "int64", **keys: Any) -> Any:
    entry = {"kind": "text", "from": "question", "vocabulary": WORDS, "pad_id": 0, **keys}
    return processor({"ids": entry}, takes=[spec("ids", dtype, length)])


def file_input(tokenizer: tokenizers.Tokenizer, *, most: int = 32, **keys: Any) -> Any:
    length = Dim("length", 1, 1, most)
    takes = [spec(name, "int64", length) for name in ("ids", "mask", "types")]
    inputs = {
        "ids": {"kind": "text", "from": "text", "tokenizer": "tokenizer.json", "pad_id": 0, **keys},
        "mask": {"kind": "mask", "of": "ids"}, "types": {"kind": "token_types", "of": "ids"},
    }
    return processor(inputs, takes=takes, files={"tokenizer.json": tokenizer.to_str().encode()})


def test_words_by_hand() -> None:
    feed = words_input().feed({"question": ["Is it even?", "is it even ? is  it"]})
    np.testing.assert_array_equal(feed["ids"], [[2, 3, 4, 1, 0, 0], [2, 3, 4, 1, 2, 3]])
    assert feed["ids"].dtype == np.int64


def test_the_specs_smallest_and_fixed_lengths_are_filled() -> None:
    assert words_input().feed({"question": "is it"})["ids"].tolist() == [[2, 3, 0, 0]]
    assert words_input(6, "int32").feed({"question": "is it"})["ids"].tolist() == [[2, 3, 0, 0, 0, 0]]
    assert words_input(pad_side="left").feed({"question": "is it"})["ids"].tolist() == [[0, 0, 2, 3]]
    assert words_input(pad_to="max_length", max_length=5).feed({"question": "is"})["ids"].tolist() == [[2, 0, 0, 0, 0]]


@pytest.mark.parametrize(("question", "message"), [
    ("is it odd?", "raw input 'question' 'is it odd \\? ' has the word 'odd', which is not in the model's vocabulary"),
    ("is it [padding]", r"has the word '\[padding\]'"),
    ("is " * 13, "has 13 tokens, more than 12: shorten it"),
    ("  ", "has no words"),
    (b"is it", "raw input 'question' is a bytes, expected a string"),
    ("\ud800", "is not text that UTF-8 can hold"),
    ("a" * (MOST_CHARACTERS + 1), "has 1000001 characters, more than 1000000"),
])
def test_texts_that_are_refused(question: Any, message: str) -> None:
    with pytest.raises(FeedError, match=message):
        words_input().feed({"question": question})


def test_unknown_words_and_truncation_where_asked() -> None:
    known = {**WORDS, "unknown": "even"}
    assert words_input(vocabulary=known).feed({"question": "is a b c"})["ids"].tolist() == [[2, 4, 4, 4]]
    long = "is it even ? " * 4
    assert words_input(truncate="right").feed({"question": long})["ids"][0].tolist() == [2, 3, 4, 1] * 3
    assert words_input(truncate="left", max_length=5).feed({"question": long})["ids"].tolist() == [[1, 2, 3, 4, 1]]


@pytest.mark.parametrize("length", [3, 6, 20])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_file_gives_what_tokenizers_own_padding_and_truncation_give(length: int, side: Any) -> None:
    reference = bert()
    made = file_input(reference, most=length, truncate=side, pad_to="max_length", pad_side=side)
    feed = made.feed({"text": TEXTS})
    reference.enable_truncation(length, direction=side)
    reference.enable_padding(direction=side, pad_id=0, length=length)
    expected = reference.encode_batch(TEXTS)
    np.testing.assert_array_equal(feed["ids"], [e.ids for e in expected])
    np.testing.assert_array_equal(feed["mask"], [e.attention_mask for e in expected])
    np.testing.assert_array_equal(feed["types"], [e.type_ids for e in expected])


def test_a_pair_has_its_types_and_the_batch_its_longest() -> None:
    reference = bert()
    feed = file_input(reference, pair="second").feed({"text": TEXTS[:2], "second": [TEXTS[3], TEXTS[0]]})
    reference.enable_padding(pad_id=0)
    expected = reference.encode_batch([(TEXTS[0], TEXTS[3]), (TEXTS[1], TEXTS[0])])
    np.testing.assert_array_equal(feed["ids"], [e.ids for e in expected])
    np.testing.assert_array_equal(feed["types"], [e.type_ids for e in expected])
    assert feed["types"].max() == 1


def test_a_template_and_special_tokens() -> None:
    reference = bert()
    made = file_input(reference, template="a photo of {}", special=False)
    expected = reference.encode("a photo of two {} dogs", add_special_tokens=False)
    assert made.feed({"text": "two {} dogs"})["ids"].tolist() == [expected.ids]


def test_the_files_own_padding_and_truncation_do_not_count() -> None:
    reference = bert()
    expected = [reference.encode(text).ids for text in TEXTS[1:2]]
    reference.enable_truncation(3)
    reference.enable_padding(length=20)
    assert file_input(reference).feed({"text": TEXTS[1:2]})["ids"].tolist() == expected


def test_too_long_for_the_model_is_refused() -> None:
    with pytest.raises(FeedError, match=r"raw input 'text' 'the quick .* has \d+ tokens, more than 6: shorten it"):
        file_input(bert(), most=6).feed({"text": TEXTS[2]})


def test_tokens_become_text_again() -> None:
    reference = bert()
    outputs = {"y": {"kind": "text", "scores": False, "tokenizer": "t.json", "stop": 3}}
    made = processor(outputs=outputs, gives=[spec("y", "int64", LENGTH)], files={"t.json": reference.to_str().encode()})
    ids = reference.encode("two dogs").ids
    assert made.answer({"y": np.array([[*ids, 5, 6]])}) == {"y": ["two dogs"]}


def test_without_tokenizers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = bert()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimesError, match=r'tokenizers, which is not installed: .* "compress-edge\[text\]"'):
        file_input(reference)


@pytest.mark.parametrize("data", [b"{}", b"", b"\xff", b'{"version": "1.0", "model": {"type": "No"}}'])
def test_a_file_that_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(RuntimesError, match=r"input 'ids' 't\.json' is not a tokenizer\.json that tokenizers .* reads"):
        processor({"ids": {"kind": "text", "from": "x", "tokenizer": "t.json", "pad_id": 0}},
                  takes=[spec("ids", "int64", LENGTH)], files={"t.json": data})


def test_no_room_beside_the_special_tokens() -> None:
    with pytest.raises(RuntimesError, match=r"max_length 2, no more than the 2 special tokens of 'tokenizer\.json'"):
        file_input(bert(), most=2, truncate="right")


@pytest.mark.parametrize(("keys", "message"), [
    ({"pad_id": 5}, "has the padding id 5, but 5 words"),
    ({"max_length": 13}, "has max_length 13, but the model's input takes 12"),
])
def test_records_that_do_not_fit_the_model(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match="processing of input 'ids' " + message):
        words_input(**keys)


def test_text_for_an_input_that_takes_none() -> None:
    with pytest.raises(RuntimesError, match="is text, but the model's input is float32"):
        words_input(dtype="float32")


@pytest.mark.parametrize(("keys", "message"), [
    ({"vocabulary": None}, "needs either 'tokenizer' or 'vocabulary'"),
    ({"tokenizer": "t.json"}, "needs either 'tokenizer' or 'vocabulary'"),
    ({"vocabulary": None, "tokenizer": "../t.json"}, "names the path '../t.json', which is not a plain path"),
    ({"vocabulary": {"words": []}}, "has no words"),
    ({"vocabulary": {"words": ["a", "b", "a"]}}, "has the word 'a' twice"),
    ({"vocabulary": {"words": ["a"], "unknown": "b"}}, "has the unknown word 'b', which is not one of the words"),
    ({"vocabulary": {"words": ["a", 1]}}, r"'words'\[1\] must be a string"),
    ({"template": "a photo"}, "has the template 'a photo', expected one {} in it"),
    ({"template": "{}{}"}, "expected one {} in it"),
    ({"pair": "b"}, "has a 'pair', which needs a 'tokenizer'"),
    ({"pad_id": -1}, "has the padding id -1"),
    ({"pad_id": True}, "'pad_id' must be an integer"),
    ({"max_length": 0}, "has the length 0"),
    ({"truncate": "yes"}, "'truncate' is 'yes'"),
    ({"begin": [-1]}, "has the id -1"),
    ({"vocabulary": None, "tokenizer": "t", "pair": "b", "default": ""}, "has a 'pair', which goes with no 'default'"),
    ({"expand": {"token": "a", "times": 0, "of": "y"}}, "'expand' has the times 0"),
    ({"expand": {"token": "", "times": 1, "of": "y"}}, "'expand' has an empty token to expand"),
])
def test_bad_records(keys: dict[str, Any], message: str) -> None:
    entry = {"kind": "text", "from": "x", "vocabulary": WORDS, "pad_id": 0, **keys}
    with pytest.raises(RuntimesError, match=message):
        parse_processing({"inputs": {"x": entry}, "outputs": {}}, "test")


def test_a_missing_pad_id() -> None:
    with pytest.raises(RuntimesError, match="processing of 'x' lacks 'pad_id'"):
        parse_processing({"inputs": {"x": {"kind": "text", "from": "x", "vocabulary": WORDS}}, "outputs": {}}, "test")


def test_ids_that_come_before_all() -> None:
    made = words_input(Dim("length", 1, 2, 4), begin=[7, 8], pad_side="left")
    np.testing.assert_array_equal(made.feed({"question": ["is it", ""]})["ids"], [[7, 8, 2, 3], [0, 0, 7, 8]])
    with pytest.raises(FeedError, match=r"'question' 'is it even' has 5 tokens, more than 4"):
        made.feed({"question": "is it even"})
    for side, kept in (("right", [2, 3]), ("left", [3, 4])):
        cut = words_input(Dim("length", 1, 2, 4), begin=[7, 8], truncate=side)
        assert cut.feed({"question": "is it even"})["ids"].tolist() == [[7, 8, *kept]]
    tokenizer = bert()
    feed = file_input(tokenizer, most=5, begin=[9], truncate="right", special=False).feed({"text": "a photo of a cat"})
    words = tokenizer.encode("a photo of a cat", add_special_tokens=False).ids
    assert (feed["ids"].tolist(), feed["types"].tolist()) == ([[9, *words[:4]]], [[0] * 5])
    with pytest.raises(RuntimesError, match="begins with 3 ids, but the model's input takes 2"):
        words_input(2, begin=[1, 2, 3])


def test_a_default_is_taken_where_nothing_is_passed() -> None:
    entry = {"kind": "text", "from": "question", "vocabulary": WORDS, "pad_id": 0, "default": "is it"}
    made = processor({"ids": entry}, takes=[spec("ids", "int64", LENGTH), spec("x", "float32", 1)])
    assert made.feed({"x": [np.zeros(1)] * 2})["ids"].tolist() == [[2, 3, 0, 0]] * 2
    assert made.feed({"x": np.zeros(1), "question": "even"})["ids"].tolist() == [[4, 0, 0, 0]]
    assert made.sources == ("question",)


def test_places_for_samples_of_another_input() -> None:
    entry: dict[str, Any] = {
        "kind": "text", "from": "question", "vocabulary": {"words": ["_", "is", "it", "<"], "separate": "<"},
        "template": "is {}", "pad_id": 0, "pad_side": "left", "expand": {"token": "<", "times": 3, "of": "x"}}
    inputs = {"ids": entry, "x": {"kind": "tensor", "from": "picture"}}
    takes = [spec("ids", "int64", Dim("length", 1, 8, 40)), spec("x", "float32", 1)]
    made, x = processor(inputs, takes=takes), np.zeros(1)
    assert made.feed({"question": "< it", "picture": x})["ids"].tolist() == [[1, 3, 3, 3, 2]]
    feed = made.feed({"question": ["<", "it < it"], "picture": [x, x]})
    assert feed["ids"].tolist() == [[0, 0, 1, 3, 3, 3], [1, 2, 3, 3, 3, 2]]
    for question, count in (("it", 0), ("< <", 2)):
        with pytest.raises(FeedError, match=rf"'question' has '<' {count} times, but 'picture' has 1 samples:"):
            made.feed({"question": question, "picture": x})
    for of in ("ids", "y"):
        entry["expand"]["of"] = of
        with pytest.raises(RuntimesError, match=f"input 'ids' has places for '{of}', which is no picture"):
            processor(inputs, takes=takes)
