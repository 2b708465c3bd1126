"""ViT: an image tower, alone or with a classifier of the whole picture."""

from __future__ import annotations

from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, Tower, classifier, record, tower_components
from compress.huggingface.pictures import image_entry, image_example
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("ViTModel", "ViTForImageClassification")


def read(folder: Folder, architecture: str) -> Parts:
    """One graph: pixels ``(batch, channels, height, width)`` to ``logits``, or to the states and the pooled one."""
    config = folder.built_config("ViTConfig")
    entry = image_entry(folder)
    model = build(folder, architecture, config)
    classifies = architecture == "ViTForImageClassification"
    answers, labels = classifier(folder, config) if classifies else ({"pooler_output": {"kind": "values"}}, {})
    return Parts(
        module=Tower(model, ["logits"] if classifies else ["last_hidden_state", "pooler_output"]),
        example={"pixel_values": image_example(config)},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,))},
        components=tower_components(model, "image_encoder"),
        labels=labels,
        processing=record(folder, {"pixel_values": entry}, answers),
    )
