"""Folders of small encoder-decoder generators with random weights, and the tokens that the library makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.compress.huggingface.folders import BERT_WORDS, TINY, save, transformers

END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, PLAIN = range(258, 265)
MARKS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
         "<|notimestamps|>"]
TIMES = [f"<|{number * 0.02:.2f}|>" for number in range(5)]
PROMPT = {"decoder_start_token_id": START, "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN}, "is_multilingual": True,
          "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE}, "no_timestamps_token_id": PLAIN}


def generating(model: Any, **settings: Any) -> None:
    """Set the model's generation config: this, and what a network of this kind has anyway."""
    config = model.generation_config.to_dict()
    model.generation_config = transformers.GenerationConfig(**{**config, "_from_model_config": False, **settings})


def whisper(folder: Path, *, generation: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Of one second of sound; ``settings`` are the network's."""
    letters = _letters()
    tokenizer = transformers.WhisperTokenizer(
        vocab={word: index for index, word in enumerate([*letters, "do", "dog"])}, merges=[("d", "o"), ("do", "g")])
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.add_tokens(TIMES)
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.WhisperConfig(**{
        "vocab_size": len(letters) + 2 + len(MARKS) + len(TIMES) + 3, "num_mel_bins": 16, "d_model": 32,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, **heads,
        "max_source_positions": 50, "max_target_positions": 40, "suppress_tokens": None, "begin_suppress_tokens": None,
        "pad_token_id": END, "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": START, **settings})
    model = transformers.WhisperForConditionalGeneration(config)
    generating(model, **{"max_length": 40, **PROMPT, **(generation or {})})
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=1)
    return save(model, folder, tokenizer, extractor)


def reader(folder: Path, decoder: str, *, generation: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A Vision-Encoder-Decoder with a ``trocr``, ``gpt2`` or ``bert`` decoder, whose ``settings`` these are."""
    sizes = {"vocab_size": 70, "max_position_embeddings": 40, "is_decoder": True, "add_cross_attention": True}
    configs = {
        "trocr": lambda: transformers.TrOCRConfig(**{
            **sizes, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
            **settings}),
        "gpt2": lambda: transformers.GPT2Config(**{
            **sizes, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, **settings}),
        "bert": lambda: transformers.BertConfig(**{**TINY, **sizes, **settings}),
    }
    # The encoder is wider than the decoder: a layer of the whole fits them.
    picture = {**TINY, "hidden_size": 48, "image_size": 32, "patch_size": 8}
    encoder = transformers.DeiTConfig(**picture) if decoder == "trocr" else transformers.ViTConfig(**picture)
    model = transformers.VisionEncoderDecoderModel(
        transformers.VisionEncoderDecoderConfig(encoder=encoder.to_dict(), decoder=configs[decoder]().to_dict()))
    generating(model, **{"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": None,
                         "max_length": 30, **(generation or {})})
    words = list(dict.fromkeys(BERT_WORDS))
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return save(model, folder, tokenizer, processor)


def _letters() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def generated(model: Any, start: int, **given: Any) -> np.ndarray:
    """What the library's greedy search picks behind ``start`` tokens, int64 ``(batch, steps)``."""
    with torch.no_grad():
        found = model.generate(**given, num_beams=1, do_sample=False)
    return np.asarray(found[:, start:].numpy())
