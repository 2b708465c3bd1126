"""The largest magnitude of every channel that can be scaled, from one pass over samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from compress.model import Model, ProgramGraph
from compress.quantize.scaling import Scalable, largest, of_inputs
from runtimes.spec import Feed


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Largest magnitudes, f64.

    ``inputs`` has those of each reader's inputs ``(inputs,)``, in the order of the readers; ``channels`` the same for
    each channel ``(channels,)``, 0 where nothing reads it; ``cut`` the share that a channel reaches of what it is cut
    at ``(channels,)``, 0 where nothing cuts it.
    """

    inputs: Sequence[Tensor]
    channels: Tensor
    cut: Tensor


def find_peaks(model: Model, found: Scalable, feeds: Iterable[tuple[str, Feed]]) -> Peaks:
    """What the channels that were ``found`` free in ``model``, a float one, reach on ``feeds``.

    What is not finite counts as it is: whatever chooses ranges afterwards names the layer.

    Args:
        feeds: graph and what it is run on, once for all of them; graphs without free channels are not run.
    """
    axes: dict[str, dict[str, int]] = {name: {} for name in model.graphs}
    for reader in found.readers:
        if bool(of_inputs(reader, found.free, False).any()):
            for graph, _, activation in reader.nodes:
                axes[graph][activation] = reader.axis
    for clip in found.clips:
        axes[clip.graph][clip.node] = clip.axis
    watchers = {name: _Largest(graph, axes[name]) for name, graph in model.graphs.items()}
    for name, feed in feeds:
        if axes[name]:
            watchers[name](feed)
    inputs = []
    for reader in found.readers:
        peaks = torch.zeros(len(reader.channels), dtype=torch.float64)
        for graph, _, activation in reader.nodes:
            peaks = torch.maximum(peaks, watchers[graph].seen.get(activation, peaks).double())
        inputs.append(peaks)
    count = len(found.free)
    channels = largest(((reader.channels, peaks) for reader, peaks in zip(found.readers, inputs, strict=True)), count)
    cut = largest(((clip.channels, watchers[clip.graph].seen[clip.node] / clip.high) for clip in found.clips
                   if clip.node in watchers[clip.graph].seen), count)  # fmt: skip
    return Peaks(inputs=inputs, channels=channels, cut=cut)


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
            self.seen[n.name] = torch.maximum(self.seen.get(n.name, peak), peak)
        return value
