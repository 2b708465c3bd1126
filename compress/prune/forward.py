"""Run the module of a model: every graph's method on its own inputs, all outputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.model import Graph

Calls: TypeAlias = Mapping[str, Graph]
"""Graph name -> the method it runs, and the inputs it takes (none named: all)."""

TensorFeed: TypeAlias = Mapping[str, torch.Tensor]


def tensors(feed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}


def call(module: nn.Module, calls: Calls, feed: TensorFeed) -> dict[str, torch.Tensor]:
    """Outputs named ``graph/position``, in the order each method returns them."""
    found: dict[str, torch.Tensor] = {}
    for name, graph in calls.items():
        method = module if graph.method == "forward" else getattr(module, graph.method)
        given = {key: feed[key] for key in (graph.inputs or feed)}
        for position, output in enumerate(pytree.tree_leaves(method(**given))):
            if isinstance(output, torch.Tensor):
                found[f"{name}/{position}"] = output
    return found
