"""Hugging Face folders of small networks that take pictures and texts together, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.compress.huggingface.folders import BERT_WORDS, TINY, save, transformers


def vilt(folder: Path, architecture: str = "ViltForQuestionAnswering", **settings: Any) -> Path:
    """Of pictures whose shorter side becomes 32 pixels, four patches."""
    words = list(dict.fromkeys(BERT_WORDS))
    config = transformers.ViltConfig(**{
        "vocab_size": len(words), "max_position_embeddings": 24, "image_size": 48, "patch_size": 8,
        "id2label": {0: "no", 1: "yes", 2: "two"}, **TINY, **settings})
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = transformers.ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)
    return save(getattr(transformers, architecture)(config), folder, tokenizer, processor)
