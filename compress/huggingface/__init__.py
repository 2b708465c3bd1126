"""Hugging Face folders: ``config.json``, safetensors and processor files to a :class:`Model`; no code of theirs runs.

One file a family of architectures, :data:`FAMILIES` from ``model_type`` to it. A family's module has
``ARCHITECTURES``, the names of the library's classes that it reads, and ``read(folder, architecture) -> Parts``.
The library builds the network once, to be traced; the model that results needs it no more.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import CompressError
from compress.huggingface.folder import read_folder
from compress.huggingface.library import quiet

if TYPE_CHECKING:
    from compress.model import Model

FAMILIES: Mapping[str, str] = {
    "bert": "compress.huggingface.bert",
    "blip": "compress.huggingface.blip",
    "clap": "compress.huggingface.clap",
    "clip": "compress.huggingface.clip",
    "llava": "compress.huggingface.llava",
    "siglip": "compress.huggingface.siglip",
    "vilt": "compress.huggingface.vilt",
    "vision-encoder-decoder": "compress.huggingface.vision_encoder_decoder",
    "vit": "compress.huggingface.vit",
    "wav2vec2": "compress.huggingface.wav2vec2",
    "whisper": "compress.huggingface.whisper",
}
"""``model_type`` of a ``config.json`` -> the module that reads it."""


def load_folder(path: Path, *, trust_pickle: bool = False) -> Model:
    """The model of a Hugging Face folder, with its processor as the record of raw inputs and answers.

    Args:
        path: the folder; everything is read from it, nothing fetched.
        trust_pickle: read ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        CompressError: if the folder, its architecture, its weights or its processor cannot be used; names the file.
    """
    from compress.saving import export_model

    folder = read_folder(path, trust_pickle=trust_pickle)
    family = importlib.import_module(_family_of(folder.model_type, path))
    named = folder.config.get("architectures") or family.ARCHITECTURES[:1]
    architecture = str(named[0] if isinstance(named, list | tuple) else named)
    if architecture not in family.ARCHITECTURES:
        raise CompressError(
            f"{path} is a {architecture}: of {folder.model_type!r} folders those of {', '.join(family.ARCHITECTURES)} "
            "are read; for another save the module with compress.save (docs/huggingface.md)"
        )
    with quiet():
        parts = family.read(folder, architecture)
        return export_model(
            parts.module.eval(), name=path.resolve().name, example=parts.example, inputs=parts.inputs,
            components=parts.components, graphs=parts.graphs, chain=parts.chain, labels=parts.labels,
            processing=parts.processing,
        )  # fmt: skip


def _family_of(model_type: str, path: Path) -> str:
    if model_type not in FAMILIES:
        raise CompressError(
            f"{path} is of the model_type {model_type!r}; read are {', '.join(FAMILIES)}. For another, save its module "
            "with compress.save, or add a file of it (docs/huggingface.md says how)"
        )
    return FAMILIES[model_type]
