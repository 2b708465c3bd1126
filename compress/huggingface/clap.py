"""CLAP: a dual encoder of sounds and texts, as two graphs with their projections."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.checkpoint import build
from compress.huggingface.dual import dual_encoder, masked_text
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts
from compress.huggingface.sounds import read_spectrogram
from compress.huggingface.tokens import read_tokens
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("ClapModel",)


def read(folder: Folder, architecture: str) -> Parts:
    """``match`` is a softmax over the texts. Of a longer sound the start is kept, where the library draws a part."""
    config = folder.built_config("ClapConfig")
    if config.audio_config.enable_fusion:
        raise CompressError(
            f"{folder.path} fuses parts of long sounds (enable_fusion), which cannot be traced: use one that does not"
        )
    # Its positions begin behind the padding's id.
    tokens = read_tokens(folder, config.text_config, reserved=config.text_config.pad_token_id + 1)
    entry, shape = read_spectrogram(folder)
    model: Any = build(folder, architecture, config, attention="eager")
    text, example, inputs = masked_text(tokens, config.text_config.eos_token_id)
    sounds = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return dual_encoder(
        folder, model, tokens, entries={"audio": {"input_features": entry}, "text": text},
        scale=model.logit_scale_a, activation="softmax",
        example={"input_features": sounds, **example},
        inputs={"input_features": Input(modality="audio", dims=(BATCH,)), **inputs},
        components={"audio_encoder": "model.audio_model", "audio_projection": "model.audio_projection",
                    "text_encoder": "model.text_model", "text_projection": "model.text_projection"},
    )  # fmt: skip
