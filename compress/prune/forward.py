"""Run the module of a model: every graph's method on what it is given, all outputs by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.model import Graph

Calls: TypeAlias = Mapping[str, Graph]
"""Graph name -> the method it runs, and the inputs it takes (none named: all)."""

GraphFeeds: TypeAlias = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""Graph name -> what it is run on, once for each feed: a decoder on several of its steps."""

Tensors: TypeAlias = Mapping[str, Sequence[Mapping[str, torch.Tensor]]]
"""The same in torch."""


def tensors(feeds: GraphFeeds) -> dict[str, list[dict[str, torch.Tensor]]]:
    return {graph: [{name: torch.from_numpy(np.array(array)) for name, array in feed.items()} for feed in own]
            for graph, own in feeds.items()}


def call(module: nn.Module, calls: Calls, feeds: Tensors) -> dict[str, torch.Tensor]:
    """Outputs named ``graph/position``, in the order each method returns them; ``graph/run/position`` from its 2nd."""
    found: dict[str, torch.Tensor] = {}
    with _layer_by_layer():
        for name, graph in calls.items():
            method = module if graph.method == "forward" else getattr(module, graph.method)
            for run, feed in enumerate(feeds[name]):
                given = {key: feed[key] for key in (graph.inputs or feed)}
                for position, output in enumerate(pytree.tree_leaves(method(**given))):
                    if isinstance(output, torch.Tensor):
                        found[f"{name}/{run}/{position}" if run else f"{name}/{position}"] = output
    return found


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Without the fast path of torch's own transformer, which goes past its layers, and which no graph has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def of_any_run(name: str) -> str:
    """``graph/position`` of an output whose graph is run several times."""
    graph, *_, position = name.split("/")
    return f"{graph}/{position}"


def samples_of(feeds: Tensors) -> int:
    """The samples that each graph is run on."""
    return max(len(value) for own in feeds.values() for feed in own[:1] for value in feed.values())
