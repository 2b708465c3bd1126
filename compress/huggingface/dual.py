"""What dual encoders share: two graphs, the embedding of a picture or sound and a text's, and how similar they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, record
from compress.huggingface.tokens import FILE, Tokens, text_input
from compress.model import Graph, Input
from compress.saving import BATCH
from runtimes.spec import Dim


class DualEncoder(nn.Module):
    """The library's network, a method for each of its encoders, projections included."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def image(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels ``(batch, channels, height, width)`` to embeddings ``(batch, width)``."""
        return {"image_embeds": _pooled(self.model.get_image_features(pixel_values=pixel_values))}

    def audio(self, input_features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Spectrograms ``(batch, 1, frames, features)`` to embeddings ``(batch, width)``."""
        return {"audio_embeds": _pooled(self.model.get_audio_features(input_features=input_features))}

    def text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Ids and mask ``(batch, length)`` to embeddings ``(batch, width)``."""
        found = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return {"text_embeds": _pooled(found)}


def dual_encoder(
    folder: Folder, model: nn.Module, tokens: Tokens, *, entries: Mapping[str, Mapping[str, Any]],
    example: Mapping[str, torch.Tensor], inputs: Mapping[str, Input], components: Mapping[str, str],
    scale: torch.Tensor, activation: str, bias: float = 0.0,
) -> Parts:  # fmt: skip
    """The parts of a dual encoder.

    The answer ``match`` gives each picture or sound a score for each text: ``activation`` of what the library calls
    ``logits_per_image`` or ``logits_per_audio``.

    Args:
        entries: graph (a method of :class:`DualEncoder`, the text's last) -> its inputs -> how the record makes each.
        scale: logarithm of what cosines are multiplied by.
    """
    of = [f"{graph}_embeds" for graph in entries]
    match = {"kind": "similarity", "of": of, "scale": math.exp(float(scale.detach())), "bias": bias,
             "normalize": True, "activation": activation}  # fmt: skip
    together = {name: entry for inputs_of in entries.values() for name, entry in inputs_of.items()}
    return Parts(
        module=DualEncoder(model), example=example, inputs=inputs, components=components,
        graphs={graph: Graph(graph, tuple(inputs_of)) for graph, inputs_of in entries.items()},
        processing=record(folder, together, {"match": match}, {FILE: tokens.data}),
    )  # fmt: skip


def masked_text(tokens: Tokens, end: int) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Input]]:
    """A text graph's ids and mask, padded to the batch's longest: entries, an example that ends in ``end``, inputs."""
    ids = tokens.example(2)
    ids[:, -1] = end
    entries = {"input_ids": tokens.entry(), "attention_mask": {"kind": "mask", "of": "input_ids"}}
    length = Dim("length", 1, min(16, tokens.length), tokens.length)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return entries, example, {name: text_input(BATCH, length) for name in entries}


def _pooled(result: Any) -> torch.Tensor:
    """The library's releases return the embedding, or an object that has it."""
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result.pooler_output
    return found
