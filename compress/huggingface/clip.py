"""CLIP: a dual encoder of pictures and texts, as two graphs with their projections."""

from __future__ import annotations

import torch

from compress.huggingface.checkpoint import build
from compress.huggingface.dual import dual_encoder
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts
from compress.huggingface.tokens import read_tokens, text_input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("CLIPModel",)


def read(folder: Folder, architecture: str) -> Parts:
    """Texts are padded to the batch's longest, since attention only looks back; ``match`` is a softmax over them."""
    config = folder.built_config("CLIPConfig")
    tokens = read_tokens(folder, config.text_config)
    model = build(folder, architecture, config)
    ids = tokens.example(2)
    ids[:, -1] = config.text_config.eos_token_id    # a text's embedding is the state at its end
    length = Dim("length", 1, min(16, tokens.length), tokens.length)
    text = {"input_ids": tokens.entry(), "attention_mask": {"kind": "mask", "of": "input_ids"}}
    return dual_encoder(
        folder, config, model, tokens, text=text, activation="softmax",
        example={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        inputs={name: text_input(BATCH, length) for name in text},
        components={"image_encoder": "model.vision_model", "image_projection": "model.visual_projection",
                    "text_encoder": "model.text_model", "text_projection": "model.text_projection"},
    )  # fmt: skip
