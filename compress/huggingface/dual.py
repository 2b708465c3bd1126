"""What dual encoders share: two graphs, a picture's embedding and a text's, and their similarity as the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, record
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.tokens import FILE, Tokens
from compress.model import Graph, Input
from compress.saving import BATCH


class DualEncoder(nn.Module):
    """The library's network, a method for each of its encoders, projections included."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def image(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels ``(batch, channels, height, width)`` to embeddings ``(batch, width)``."""
        return {"image_embeds": _pooled(self.model.get_image_features(pixel_values=pixel_values))}

    def text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Ids and mask ``(batch, length)`` to embeddings ``(batch, width)``."""
        found = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return {"text_embeds": _pooled(found)}


def dual_encoder(
    folder: Folder, config: Any, model: Any, tokens: Tokens, *, text: Mapping[str, Any],
    example: Mapping[str, torch.Tensor], inputs: Mapping[str, Input], components: Mapping[str, str],
    activation: str, bias: float = 0.0,
) -> Parts:  # fmt: skip
    """The parts of a dual encoder; ``text`` are the record's entries of the text graph's inputs.

    The answer ``match`` gives each picture a score for each text: ``activation`` of the library's ``logits_per_image``.
    """
    scale = math.exp(float(model.logit_scale.detach()))
    match = {"kind": "similarity", "of": ["image_embeds", "text_embeds"], "scale": scale, "bias": bias,
             "normalize": True, "activation": activation}  # fmt: skip
    return Parts(
        module=DualEncoder(model),
        example={"pixel_values": image_example(config.vision_config), **example},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)), **inputs},
        components=components,
        graphs={"image": Graph("image", ("pixel_values",)), "text": Graph("text", tuple(text))},
        processing=record(folder, {"pixel_values": image_entry(folder), **text}, {"match": match}, {FILE: tokens.data}),
    )


def _pooled(result: Any) -> torch.Tensor:
    """The library's releases return the embedding, or an object that has it."""
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result.pooler_output
    return found
