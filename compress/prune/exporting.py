"""A pruned module as a model, with all that the model it was made of has beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from compress.model import Input, Model, ModelProcessing
from compress.prune.forward import Calls
from compress.prune.handed import Lost
from compress.saving import export_model


def export_pruned(
    model: Model, module: nn.Module, calls: Calls, *, channels: Mapping[str, Any],
    processing: ModelProcessing | None = None, less: Lost | None = None,
) -> Model:
    """``module``, a smaller form of that of ``model``; ``channels`` is its channel map, ``processing`` another one, and
    ``less`` what its graphs no longer hand to each other."""
    example = dict(model.example)
    for name in example.keys() & (less or {}).keys():
        axis, places = (less or {})[name]
        example[name] = np.delete(example[name], places, axis)
    return export_model(
        module, name=model.name, example=example, components=model.components, factory=model.factory,
        inputs={spec.name: Input(
            modality=spec.modality, dims=tuple(None if isinstance(size, int) else size for size in spec.shape),
        ) for graph in model.graphs.values() for spec in graph.inputs},
        graphs=calls, chain=model.chain, labels=model.labels, processing=processing or model.processing,
        channels=channels)
