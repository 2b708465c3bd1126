"""Run a program over a calibration set once and keep a histogram of every tensor that an int8 operator reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from calibration import CalibrationError, CalibrationSet, Histogram, choose_range
from compress.errors import CompressError
from compress.model import ProgramGraph
from compress.program import told_as
from compress.quantize import QuantizeConfig
from compress.quantize.annotate import Operator, sources
from runtimes.spec import largest_batch

BATCH = 32


class _Collector(Interpreter):
    """Runs the graph node by node; each wanted tensor is collected once, however many operators read it."""

    def __init__(self, module: GraphModule, operators: Sequence[Operator], data: str) -> None:
        super().__init__(module)
        self.layers = {operator.activation: operator.path for operator in reversed(operators)}
        self.histograms = {name: Histogram() for name in self.layers}
        self.data = data

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.histograms:
            try:
                self.histograms[n.name].update(value.detach().numpy())
            except CalibrationError as error:
                raise CompressError(
                    f"the input of layer {self.layers[n.name]!r} is not finite on a sample of calibration set "
                    f"{self.data!r} ({error}): check the data's scaling, or keep the layer in float"
                ) from error
        return value


def collect_ranges(
    module: GraphModule,
    operators: Sequence[Operator],
    graph: ProgramGraph,
    data: CalibrationSet,
    config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Range of each tensor that ``operators`` read, by node name, chosen as ``config`` says.

    Raises:
        CompressError: if an activation is not finite; names the module and the calibration set.
    """
    nodes = sources(module, operators)
    collector = _Collector(module, operators, data.name)
    names = [spec.name for spec in graph.inputs]
    done = 0
    for feed in data.batches(largest_batch(graph.inputs, BATCH)):
        with torch.no_grad(), told_as(f"the model fails on calibration set {data.name!r}, from sample {done} on"):
            collector.run(
                *(torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names), enable_io_processing=False
            )
        done += len(feed[names[0]])
        if progress is not None:
            progress(done, len(data))
    return {
        node.name: choose_range(
            collector.histograms[node.name], config.ranges, config.percentile, name=collector.layers[node.name]
        )
        for node in nodes
    }
