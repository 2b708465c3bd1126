"""Migration of outliers: channels of an activation that are large are divided, the weights that read them multiplied.

Source: SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, section 4, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from compress.errors import CompressError
from compress.model import Model, ProgramGraph
from compress.program import module_path
from compress.quantize.following import find_scalable
from compress.quantize.scaling import Scalable, largest
from runtimes.spec import Feed


def smooth(model: Model, feeds: Iterable[tuple[str, Feed]], alpha: float) -> tuple[Model, int]:
    """``model`` with the same function and smoother activations, and how many of its norms and layers were scaled.

    Channel ``j`` is divided by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` where it is made, by a norm's weight and
    bias or by the layer before, and the weights that read it are multiplied by it; layers that read the same activation
    share ``s``, with the largest of their ``|W_j|``. Scaled are channels of norms, and those of a layer that another
    reads as they are: attention's values, say. Behind ReLU channels stay: it costs more than it gives there, and
    :mod:`compress.quantize.equalize` is what suits. So does one that is always zero or that nothing reads.

    Args:
        model: a float one.
        feeds: graph and what it is run on, once for all of them.
        alpha: migration strength in (0, 1]: how much of the difficulty goes to the weights.

    Raises:
        CompressError: if an activation is not finite; names the layer that reads it.
    """
    found = find_scalable(model)
    seen = largest_activations(model, found, feeds)
    weights = largest(((reader, reader.columns(model.weights[reader.weight].detach().double().abs())
                        .amax((1, 3)).flatten()) for reader in found.readers), len(found.free))  # fmt: skip
    found.free &= (seen > 0) & (weights > 0) & ~found.rectified
    scaled = sum(bool(found.free[source.channels].any()) for source in found.sources)
    return found.rescaled(model, seen**alpha / weights ** (1 - alpha)) if scaled else model, scaled


def largest_activations(model: Model, found: Scalable, feeds: Iterable[tuple[str, Feed]]) -> Tensor:
    """The largest magnitude of each channel where it is read, f64 ``(channels,)``."""
    axes: dict[str, dict[str, int]] = {name: {} for name in model.graphs}
    for reader in found.readers:
        for graph, _, activation in reader.nodes:
            axes[graph][activation] = reader.axis
    watchers = {name: _Largest(graph, axes[name]) for name, graph in model.graphs.items()}
    for name, feed in feeds:
        watchers[name](feed)
    return largest(((reader, watchers[graph].seen[activation]) for reader in found.readers
                    for graph, _, activation in reader.nodes if activation in watchers[graph].seen), len(found.free))


class _Largest(Interpreter):
    """Runs a graph and keeps the largest magnitude of each channel of the nodes in ``axes``, along that axis."""

    def __init__(self, graph: ProgramGraph, axes: Mapping[str, int]) -> None:
        module: GraphModule = graph.program.module(check_guards=False)
        super().__init__(module)
        self.inputs = [spec.name for spec in graph.inputs]
        self.axes = axes
        self.seen: dict[str, Tensor] = {}

    def __call__(self, feed: Feed) -> None:
        with torch.no_grad():
            self.run(*(torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self.inputs),
                     enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.axes:
            axis = self.axes[n.name]
            peak = value.abs().movedim(axis, -1).reshape(-1, value.shape[axis]).amax(0)
            if not bool(peak.isfinite().all()):
                layer = module_path(next(user for user in n.users if module_path(user)))
                raise CompressError(
                    f"the input of layer {layer!r} is not finite on a calibration sample: check the data's scaling, or "
                    "keep the layer in float"
                )
            self.seen[n.name] = torch.maximum(self.seen.get(n.name, peak), peak)
        return value
