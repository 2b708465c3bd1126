"""SigLIP: a dual encoder of pictures and texts, as two graphs."""

from __future__ import annotations

from typing import Any

from compress.errors import CompressError
from compress.huggingface.checkpoint import build
from compress.huggingface.dual import dual_encoder
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.tokens import FILE, read_tokens, text_input
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("SiglipModel",)


def read(folder: Folder, architecture: str) -> Parts:
    """Texts are padded to the full length, without a mask, as it was trained; ``match`` is a sigmoid for each text."""
    if not (folder.path / FILE).is_file():
        raise CompressError(
            f"{folder.path} has no {FILE}: a spiece.model alone is not read; convert it with the tokenizers package"
        )
    config = folder.built_config("SiglipConfig")
    tokens = read_tokens(folder, config.text_config, reader="PreTrainedTokenizerFast")
    pixels = image_entry(folder)
    model: Any = build(folder, architecture, config)
    return dual_encoder(
        folder, model, tokens,
        entries={"image": {"pixel_values": pixels}, "text": {"input_ids": tokens.entry(padded=True)}},
        scale=model.logit_scale, activation="sigmoid", bias=float(model.logit_bias.detach()),
        example={"pixel_values": image_example(config.vision_config), "input_ids": tokens.example(2, full=True)},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)), "input_ids": text_input(BATCH, None)},
        components={"image_encoder": "model.vision_model", "text_encoder": "model.text_model"},
    )  # fmt: skip
