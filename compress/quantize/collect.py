"""Run programs over a calibration set once and keep a histogram of every tensor that an int8 operator reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from calibration import CalibrationError, CalibrationSet, Histogram, choose_range
from compress.errors import CompressError
from compress.model import Model, ProgramGraph
from compress.program import chain_of, told_as
from compress.quantize import QuantizeConfig
from compress.quantize.annotate import Operator, sources
from compress.quantize.schemes import Scheme
from runtimes.spec import Feed, TensorSpec, largest_batch

BATCH = 32
STEPS = 32      # of a decoder on each sample: what tokens do to the ranges shows in the first ones


class Collector(Interpreter):
    """Runs a graph node by node; each tensor that ``operators`` read is collected once, however many do.

    Raises:
        CompressError: from :meth:`__call__`, if an activation is not finite; names the module and the calibration set.
    """

    def __init__(self, module: GraphModule, operators: Sequence[Operator], graph: ProgramGraph, data: str) -> None:
        super().__init__(module)
        self.inputs = [spec.name for spec in graph.inputs]
        self.outputs = [spec.name for spec in graph.outputs]
        self.layers = {operator.activation: operator.path for operator in reversed(operators)}
        self.histograms = {node.name: Histogram() for node in sources(module, operators)}
        self.data = data

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """The outputs for ``feed``."""
        with torch.no_grad():
            values = self.run(*(torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self.inputs),
                              enable_io_processing=False)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}

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

    def ranges(self, config: QuantizeConfig, scheme: Scheme) -> dict[str, tuple[float, float]]:
        """Range of each tensor that was collected, by node name, chosen for the integers of ``scheme``."""
        grid = scheme.activations.grid
        return {
            name: choose_range(histogram, config.ranges, config.percentile, grid, name=self.layers[name])
            for name, histogram in self.histograms.items()
        }


def collect(
    run: Callable[[Feed], object], inputs: Sequence[TensorSpec], data: CalibrationSet,
    progress: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Give ``run`` every sample of ``data``, as many at a time as ``inputs`` allow; told how many are done."""
    done = 0
    for feed in data.batches(largest_batch(inputs, BATCH)):
        with told_as(f"the model fails on calibration set {data.name!r}, from sample {done} on"):
            run(feed)
        done += len(feed[inputs[0].name])
        if progress is not None:
            progress(done)


def collecting_chain(model: Model, collectors: Mapping[str, Collector]) -> Callable[[Feed], object]:
    """The chain of ``model`` with a collector for each graph: a decoder is calibrated on its own steps.

    The prompt and the steps behind it, with the cache, are collected alike; of a long text the first :data:`STEPS`.
    """
    assert model.chain is not None
    steps = [dict(step) for step in model.chain["steps"]]
    for step in steps:
        if "loop" in step:
            most = min(step["loop"]["max_steps"], STEPS)
            least = min(step["loop"].get("min_steps", 0), most)
            step["loop"] = {**step["loop"], "max_steps": most, "min_steps": least}
    return chain_of(dataclasses.replace(model, chain={**model.chain, "steps": steps}), collectors).run
