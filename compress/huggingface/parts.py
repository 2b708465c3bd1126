"""What a family makes of a folder, and what the families of one network with one forward() share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.model import Graph, Input, ModelProcessing
from runtimes.errors import RuntimesError
from runtimes.processing.record import parse_processing


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The arguments of ``export_model`` that a folder gives."""

    module: nn.Module
    example: Mapping[str, torch.Tensor]
    inputs: Mapping[str, Input]
    components: Mapping[str, str]
    processing: ModelProcessing
    graphs: Mapping[str, Graph] | None = None
    chain: Mapping[str, Any] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Tower(nn.Module):
    """A network of the library that gives the outputs of these names."""

    def __init__(self, model: nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)

    def forward(self, **feed: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self.model(**feed, return_dict=True)
        return {name: result[name] for name in self.outputs}


def tower_components(model: Any, name: str) -> dict[str, str]:
    """Of a :class:`Tower`: the encoder as ``name``, and each head that stands beside it under its own name."""
    if not hasattr(model, model.base_model_prefix):
        return {name: "model"}
    heads = {head: f"model.{head}" for head, child in model.named_children() if any(True for _ in child.parameters())}
    encoder = heads.pop(model.base_model_prefix)
    return {name: encoder, **heads}


def classifier(folder: Folder, config: Any) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """How ``logits`` are read, and what they mean, by the config's ``problem_type`` and ``id2label``."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return {"logits": {"kind": "values"}}, {}
    names = config.id2label
    if sorted(names) != list(range(len(names))):
        raise CompressError(f"{folder.path / 'config.json'}: id2label does not name the labels 0 to {len(names) - 1}")
    kind = "multilabel" if config.problem_type == "multi_label_classification" else "classes"
    return {"logits": {"kind": kind}}, {"logits": tuple(str(names[index]) for index in range(len(names)))}


def record(
    folder: Folder, inputs: Mapping[str, Any], outputs: Mapping[str, Any], files: Mapping[str, bytes] | None = None
) -> ModelProcessing:
    """The record of raw inputs and answers made of the folder's processor."""
    try:
        section = parse_processing({"inputs": dict(inputs), "outputs": dict(outputs)}, f"processor of {folder.path}")
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    return ModelProcessing(section=section, files=files or {})
