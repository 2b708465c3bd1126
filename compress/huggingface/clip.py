"""CLIP: a dual encoder of pictures and texts, as two graphs with their projections."""

from __future__ import annotations

from typing import Any

from compress.huggingface.checkpoint import build
from compress.huggingface.dual import dual_encoder, masked_text
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.tokens import read_tokens
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("CLIPModel",)


def read(folder: Folder, architecture: str) -> Parts:
    """Texts are padded to the batch's longest, since attention only looks back; ``match`` is a softmax over them."""
    config = folder.built_config("CLIPConfig")
    tokens = read_tokens(folder, config.text_config)
    pixels = image_entry(folder)
    model: Any = build(folder, architecture, config)
    text, example, inputs = masked_text(tokens, config.text_config.eos_token_id)
    return dual_encoder(
        folder, model, tokens, entries={"image": {"pixel_values": pixels}, "text": text},
        scale=model.logit_scale, activation="softmax",
        example={"pixel_values": image_example(config.vision_config), **example},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)), **inputs},
        components={"image_encoder": "model.vision_model", "image_projection": "model.visual_projection",
                    "text_encoder": "model.text_model", "text_projection": "model.text_projection"},
    )  # fmt: skip
