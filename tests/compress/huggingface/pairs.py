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


def llava(folder: Path, kind: str = "llama", **settings: Any) -> Path:
    """A CLIP tower before a Llama, or a SigLIP tower, two layers of it, before a Qwen2; ``settings`` are the latter's.

    A picture is 16 tokens. Texts end with a token that its random weights like.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzUSERAI:?", "▁is", "▁the", "▁dog"]
    pieces = [(word, -3.0 if len(word) > 1 else -5.0) for word in dict.fromkeys(words)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens([*words[:4], AddedToken("<image>", special=True)])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    image_token = backend.token_to_id("<image>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left", model_max_length=256, model_input_names=["input_ids", "attention_mask"])
    text = {**TINY, "vocab_size": image_token + 3, "max_position_embeddings": 96, "num_key_value_heads": 2,
            "bos_token_id": 1, "eos_token_id": 24 if kind == "llama" else 12, "pad_token_id": 0, **settings}
    vision = {**TINY, "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3}
    llama = kind == "llama"
    config = transformers.LlavaConfig(
        text_config=(transformers.LlamaConfig if llama else transformers.Qwen2Config)(**text),
        vision_config=(transformers.CLIPVisionConfig if llama else transformers.SiglipVisionConfig)(**vision),
        image_token_index=image_token, image_seq_length=16, vision_feature_layer=-2 if llama else [-3, -1],
        vision_feature_select_strategy="default" if llama else "full")
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size) if llama \
        else transformers.SiglipImageProcessorPil(size=size)
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, num_additional_image_tokens=int(llama),
        vision_feature_select_strategy=config.vision_feature_select_strategy)
    return save(transformers.LlavaForConditionalGeneration(config), folder, processor)
