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


def blip(folder: Path, architecture: str = "BlipForConditionalGeneration", **settings: Any) -> Path:
    """Whose texts end early or late, with a token that its random weights like; the tokenizer has no start token, as of
    those published. ``settings`` are the text network's."""
    words = list(dict.fromkeys(BERT_WORDS))
    text = {"vocab_size": len(words) + 2, "max_position_embeddings": 24, "bos_token_id": len(words),
            "sep_token_id": 16 if "Question" in architecture else 59, "pad_token_id": 0, "encoder_hidden_size": 32}
    config = transformers.BlipConfig(
        text_config={**TINY, **text, **settings}, vision_config={**TINY, "image_size": 32, "patch_size": 8},
        image_text_hidden_size=16)
    model = getattr(transformers, architecture)(config)
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    return save(model, folder, tokenizer, processor)
