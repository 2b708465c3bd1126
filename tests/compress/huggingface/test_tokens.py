"""Tokenizers of the library as records: whatever files they lie in, the ids are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import compress
from compress.huggingface.folder import Folder
from compress.huggingface.tokens import FILE, Tokens, read_tokens
from runtimes.spec import Dim
from tests.compress.huggingface.folders import BERT_WORDS, TEXTS, transformers
from tests.runtimes.processing.describing import processor, spec

WORDS = list(dict.fromkeys([*BERT_WORDS, "A", "##A", "T", "two"]))
CONFIG = SimpleNamespace(vocab_size=len(WORDS), max_position_embeddings=40)


def read(path: Path, **values: Any) -> Tokens:
    config = SimpleNamespace(**{**vars(CONFIG), **values})
    return read_tokens(Folder(path=path, model_type="bert", config={}), config)


def check(path: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(path)
    tokens = read(path)
    takes = [spec(name, "int64", Dim("length", 1, 1, tokens.length)) for name in ("x", "mask")]
    made = processor({"x": tokens.entry(), "mask": {"kind": "mask", "of": "x"}}, takes=takes, files={FILE: tokens.data})
    expected = reference(TEXTS, padding=True, return_tensors="np")
    feed = made.feed({"text": TEXTS})
    np.testing.assert_array_equal(feed["x"], expected["input_ids"])
    np.testing.assert_array_equal(feed["mask"], expected["attention_mask"])


def bert(folder: Path, **options: Any) -> Path:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    vocab = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocab, **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"padding_side": "left"}, {"strip_accents": False}])
def test_settings_are_taken(tmp_path: Path, options: dict[str, Any]) -> None:
    check(bert(tmp_path, **options))


def test_a_word_list_alone(tmp_path: Path) -> None:
    """As folders of the first releases have it."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    check(tmp_path)


def test_the_length_is_the_smaller_one(tmp_path: Path) -> None:
    assert read(bert(tmp_path)).length == 40
    assert read(bert(tmp_path, model_max_length=16)).length == 16
    assert read(bert(tmp_path, model_max_length=64)).length == 40


def test_what_is_refused(tmp_path: Path) -> None:
    bert(tmp_path, pad_token=None)
    with pytest.raises(compress.CompressError, match="has no padding token"):
        read(tmp_path)
    bert(tmp_path)
    with pytest.raises(compress.CompressError, match=f"ids up to {len(WORDS) - 1}, but the embedding has 9 rows"):
        read(tmp_path, vocab_size=9)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "<s>": 3, "</s>": 4}))
    (tmp_path / FILE).unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}))
    with pytest.raises(compress.CompressError, match="its Wav2Vec2CTCTokenizer is none of the tokenizers package"):
        read(tmp_path)
