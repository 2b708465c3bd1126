"""Weights by the names that older releases of the library wrote: what is published has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.program import run_program
from tests.compress.huggingface.folders import bert, change, clip, same, transformers, wav2vec2


def rewrite(folder: Path, name: Callable[[str], str | None], **more: torch.Tensor) -> int:
    """Rename the weights in the folder, or drop them; how many changed."""
    weights = load_file(folder / "model.safetensors")
    renamed = {new: value for old, value in weights.items() if (new := name(old)) is not None}
    save_file({**renamed, **more}, folder / "model.safetensors", {"format": "pt"})
    return len(weights.keys() - renamed.keys())


def outputs(folder: Path) -> dict[str, np.ndarray]:
    model = compress.load(folder)
    return run_program(model, model.example)


def test_berts_layer_norms(tmp_path: Path) -> None:
    folder = bert(tmp_path / "it")
    expected = outputs(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def name(new: str) -> str:
        return next((new.replace(ours, theirs) for ours, theirs in old.items() if new.endswith(ours)), new)

    positions = {"bert.embeddings.position_ids": torch.arange(24)[None]}
    assert rewrite(folder, name, **positions) == 10
    np.testing.assert_array_equal(outputs(folder)["logits"], expected["logits"])


def test_wav2vec2s_weight_norm(tmp_path: Path) -> None:
    """And without the weight that training alone reads; of the others none may be missing."""
    folder = wav2vec2(tmp_path / "it")
    expected = outputs(folder)
    old = {"original0": "weight_g", "original1": "weight_v"}

    def name(new: str) -> str | None:
        head, _, last = new.rpartition(".parametrizations.weight.")
        return None if new.endswith("masked_spec_embed") else f"{head}.{old[last]}" if last in old else new

    assert rewrite(folder, name) == 3
    np.testing.assert_array_equal(outputs(folder)["logits"], expected["logits"])
    assert not compress.load(folder).weights["model.wav2vec2.masked_spec_embed"].any()
    rewrite(folder, lambda name: None if name.endswith("weight_g") else name)
    with pytest.raises(compress.CompressError, match=r"lacks '.*parametrizations.weight.original0'"):
        compress.load(folder)


def test_clips_first_configs(tmp_path: Path) -> None:
    """They say that 2 ends a text, which it does not: there the network looks for the largest id instead."""
    folder = clip(tmp_path / "it", eos_token_id=2, bos_token_id=0, pad_token_id=1)
    rewrite(folder, lambda name: name, **{"text_model.embeddings.position_ids": torch.arange(32)[None],
                                          "vision_model.embeddings.position_ids": torch.arange(17)[None]})  # fmt: skip
    model = compress.load(folder)
    reference = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(["a dog", "two cats"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference.get_text_features(**tokens)
    feed = {name: value.numpy() for name, value in tokens.items()}
    same(run_program(model, feed, "text"), {"text_embeds": getattr(expected, "pooler_output", expected)})


def test_half_precision(tmp_path: Path) -> None:
    """What lies in half precision is computed in float32, as everything here."""
    folder = bert(tmp_path / "it")
    expected = outputs(folder)["logits"]
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    change(folder, "config.json", dtype="float16", torch_dtype="float16")
    found = outputs(folder)["logits"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
