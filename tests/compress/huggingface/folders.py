"""Hugging Face folders of small networks with random weights, written by the library itself, and the library's results.

Nothing is fetched: the tokenizers are made of a few words here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import compress
import runtimes
from compress.model import Model
from compress.targets import get_target

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TARGETS = ("onnxruntime-cpu", pytest.param("openvino-cpu", marks=pytest.mark.slow))
TEXTS = ["a photo of a cat", "Two dogs, playing!", "the quick brown fox", "café?"]
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz,!?",
              *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "photo", "dog", "##s", "the"]


def save(model: Any, folder: Path, *processors: Any) -> Path:
    """With weights as of a trained network, not near zero, so that its answers depend on what it is given."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * 1.5 / value[0].numel() ** 0.5)
            elif name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    model.eval().save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


def bert(folder: Path, architecture: str = "BertForSequenceClassification", **settings: Any) -> Path:
    words = list(dict.fromkeys(BERT_WORDS))
    config = transformers.BertConfig(**{
        "vocab_size": len(words) + 3, "max_position_embeddings": 24, "id2label": {0: "no", 1: "yes", 2: "so so"},
        **TINY, **settings})
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return save(getattr(transformers, architecture)(config), folder, tokenizer)


def vit(folder: Path, architecture: str = "ViTForImageClassification", **settings: Any) -> Path:
    config = transformers.ViTConfig(**{
        "image_size": 32, "patch_size": 8, "id2label": {0: "cat", 1: "dog", 2: "fish"}, **TINY, **settings})
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return save(getattr(transformers, architecture)(config), folder, processor)


def wav2vec2(folder: Path, architecture: str = "Wav2Vec2ForCTC", *, masked: bool = False, **settings: Any) -> Path:
    """``masked`` is the large models' way, with layer norms and an attention mask; else the base model's."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEHLORW"]
    config = transformers.Wav2Vec2Config(**{
        "vocab_size": len(words), "conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4),
        "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer" if masked else "group", "do_stable_layer_norm": masked, "conv_bias": masked,
        "classifier_proj_size": 24, "id2label": {0: "stop", 1: "go"}, **TINY, **settings})
    processors = [transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)]
    if architecture == "Wav2Vec2ForCTC":
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        processors.append(transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))
    return save(getattr(transformers, architecture)(config), folder, *processors)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones with noise at 16 kHz, rising and falling, in -1..1."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * 16000)) / 16000
    pitches = 2 * np.pi * np.array([[220 + 90 * seed], [700], [2500]])
    tones = (np.sin(pitches * time) * np.sin(np.pi * time * [[1], [2], [3]]) ** 2).sum(axis=0)
    return np.asarray(0.2 * tones + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def clip(folder: Path, **settings: Any) -> Path:
    """``settings`` are the text network's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[("d", "o"), ("do", "g</w>")])
    end = len(words) - 1
    text = {"vocab_size": len(words), "max_position_embeddings": 32, "eos_token_id": end, "bos_token_id": end - 1,
            "pad_token_id": end}
    vision = {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**TINY, **text, **settings}, vision_config={**TINY, **vision}, projection_dim=24,
        logit_scale_init_value=1.5)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(transformers.CLIPModel(config), folder, tokenizer, processor)


def clap(folder: Path, **settings: Any) -> Path:
    """Of two seconds of sound; ``settings`` are its audio network's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values(), "do", "dog"]
    tokenizer = transformers.RobertaTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[("d", "o"), ("do", "g")])
    audio = {"window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4],
             "hidden_size": 64, "depths": [1, 1], "num_attention_heads": [2, 4], "patch_embeds_hidden_size": 32}
    text = {"vocab_size": len(words), "max_position_embeddings": 34, **TINY}
    config = transformers.ClapConfig(
        text_config=text, audio_config={**audio, **settings}, projection_dim=24, logit_scale_init_value=4.0)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=2, truncation="rand_trunc", frequency_min=50)
    return save(transformers.ClapModel(config), folder, tokenizer, extractor)


def siglip(folder: Path) -> Path:
    """Its tokenizer is a unigram model of the tokenizers package, as the ones published are."""
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, processors

    letters, words = "▁abcdefghijklmnopqrstuvwxyz", ("▁a", "▁photo", "▁dog", "▁the")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -5.0) for letter in letters),
              *((word, -3.0) for word in words)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex("[!?,.]"), "")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=24,
        model_input_names=["input_ids"])
    config = transformers.SiglipConfig(
        text_config={**TINY, "vocab_size": len(pieces), "max_position_embeddings": 24,
                     "projection_size": TINY["hidden_size"]},
        vision_config={**TINY, "image_size": 32, "patch_size": 8})
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-1.0)
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(model, folder, tokenizer, processor)


def change(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file in the folder; ``None`` removes one."""
    record = {**json.loads((folder / file).read_text()), **values}
    (folder / file).write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def picture(height: int = 41, width: int = 57, seed: int = 0) -> Image.Image:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def bundle(model: Model, folder: Path, target: str) -> Path:
    """A bundle of the model for ``target``, whose golden feeds are its example."""
    engines = {graph: {target: compress.export(model, get_target(target), folder / graph, graph=graph)}
               for graph in model.graphs}  # fmt: skip
    golden = {name: {spec.name: model.example[spec.name] for spec in graph.inputs}
              for name, graph in model.graphs.items()}  # fmt: skip
    compress.bundle(model, engines, golden, folder / "it.bundle")
    return folder / "it.bundle"


def opened(path: Path) -> Any:
    return runtimes.load(path, threads=1, self_test=True, warmup=1)


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, Any], within: float = 1e-4) -> None:
    """Outputs of an engine and of the library, by name."""
    for name, value in theirs.items():
        expected = value.detach().numpy()
        assert expected.std() > 1e-3, f"{name} does not depend on anything"
        np.testing.assert_allclose(ours[name], expected, atol=within, rtol=within, err_msg=name)
