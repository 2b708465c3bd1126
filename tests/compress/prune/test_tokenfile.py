"""Tokenizers without some of their pieces, held against the tokenizers package itself."""

from __future__ import annotations

import functools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from compress.errors import CompressError
from compress.prune.tokenfile import TokenFile, gone

TEXTS = ["the quick brown fox jumps over the lazy dog", "the dogs and the foxes were quicker than the cat",
         "a photo of a lazy cat and a photo of two dogs", "jumping over brown dogs is what foxes do"] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]"]
KINDS = ("bytes", "suffixed", "pieces", "words", "unigram")


@functools.cache
def trained(kind: str) -> bytes:
    """A ``tokenizer.json`` learnt from :data:`TEXTS`."""
    if kind in ("bytes", "suffixed"):
        suffix = {"end_of_word_suffix": "</w>"} if kind == "suffixed" else {}
        made = tokenizers.Tokenizer(models.BPE(**suffix))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "bytes" else (
            pre_tokenizers.Whitespace())
        made.decoder = decoders.ByteLevel() if kind == "bytes" else decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(
            vocab_size=400 if kind == "bytes" else 120, special_tokens=SPECIAL, show_progress=False, **suffix,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [])
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    elif kind == "words":
        made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    else:
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|end|>"])            # behind the vocabulary, which has no such token
    made.add_tokens(["<|0.00|>"])
    return made.to_str().encode()


def opened(data: bytes) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(data.decode())


WORDS = st.lists(st.sampled_from(sorted({word for text in TEXTS for word in text.split()})), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(used=st.lists(WORDS, min_size=1, max_size=3), other=WORDS)
def test_texts_of_kept_pieces_give_the_same_ids_and_others_give_kept_ones(
    kind: str, used: list[list[str]], other: list[str],
) -> None:
    before, file = opened(trained(kind)), TokenFile(trained(kind), kind)
    ids = {number for words in used for number in before.encode(" ".join(words)).ids}
    kept = file.with_parts({*ids, *file.always})
    after = opened(file.without(kept))
    for words in used:
        text = " ".join(words)
        assert after.encode(text).ids == before.encode(text).ids
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)
    found = after.encode(" ".join(other) + " <|end|>")
    assert set(found.ids) <= kept
    assert found.ids[-1] == before.token_to_id("<|end|>")           # added tokens have the ids they had
    assert after.token_to_id("<|0.00|>") == before.token_to_id("<|0.00|>")
    if kind != "words":                                             # what is split into smaller pieces is still there
        assert after.decode(found.ids) == before.decode(before.encode(" ".join(other) + " <|end|>").ids)


def test_a_piece_keeps_all_that_it_may_be_merged_from() -> None:
    record = {"added_tokens": [], "model": {
        "type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "ca": 6},
        "merges": ["a b", "b c", "ab c", ["a", "bc"], "c a"]}}
    file = TokenFile(json.dumps(record).encode(), "tokenizer.json")
    assert file.always == {0, 1, 2}
    assert file.with_parts([5]) == {0, 1, 2, 3, 4, 5}
    model = json.loads(file.without({0, 1, 2, 3}))["model"]
    assert model["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3}
    assert model["merges"] == ["a b"]


def test_what_any_text_needs() -> None:
    pieces = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "vocab": {"[UNK]": 0, "a": 1, "##a": 2, "aa": 3, "##aa": 4}}
    assert TokenFile(json.dumps({"model": pieces}).encode(), "").always == {0, 1, 2}
    unigram = {"type": "Unigram", "unk_id": 1, "vocab": [["<0x0A>", 0], ["<unk>", 0], ["a", -1], ["ab", -2]]}
    file = TokenFile(json.dumps({"model": unigram, "added_tokens": [{"id": 4, "content": "<s>"}]}).encode(), "")
    assert file.always == {0, 1, 2, 4}
    assert json.loads(file.without(file.always))["model"]["vocab"][3] == [gone(3), -2]


def test_a_file_that_does_not_say_its_kind() -> None:
    assert [TokenFile(json.dumps({"model": model}).encode(), "").kind for model in (
        {"vocab": {"a": 0}, "merges": []}, {"vocab": [["a", 0.0]]}, {"vocab": {"a": 0}},
        {"vocab": {"a": 0}, "max_input_chars_per_word": 10})] == ["BPE", "Unigram", "WordLevel", "WordPiece"]


def test_another_kind_is_refused() -> None:
    with pytest.raises(CompressError, match=r"'t\.json' is a tokenizer of the kind 'Magic': pieces can be taken"):
        TokenFile(json.dumps({"model": {"type": "Magic", "vocab": {}}}).encode(), "t.json")
