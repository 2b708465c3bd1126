"""Run programs over a calibration set once and keep statistics of every tensor that an int8 operator reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from calibration import CalibrationError, CalibrationSet, Histogram, choose_range
from calibration.tensor import TensorStatistics
from compress.errors import CompressError
from compress.model import Model, ProgramGraph
from compress.program import chain_of, told_as
from compress.quantize import QuantizeConfig
from compress.quantize.annotate import Operator, sources
from compress.quantize.schemes import Scheme
from compress.quantize.views import SAME_VALUES
from runtimes.spec import Feed, TensorSpec, largest_batch

BATCH = 32
LARGEST = 1 << 22       # values of a tensor in a batch of several samples
STEPS = 32      # of a decoder on each sample: what tokens do to the ranges shows in the first ones


class Collector:
    """A graph that keeps statistics of each tensor that ``operators`` read, once however many do.

    Tensors that are others in another shape share what is kept of these. ``module`` is changed: it watches these
    tensors as it runs.

    Raises:
        CompressError: from :meth:`__call__`, if an activation is not finite; names the module, the calibration set and
            the sample.
    """

    def __init__(self, module: GraphModule, operators: Sequence[Operator], graph: ProgramGraph, data: str) -> None:
        self.inputs = [spec.name for spec in graph.inputs]
        self.outputs = [spec.name for spec in graph.outputs]
        self.operators = operators
        self.layers = {name: operator.called for operator in reversed(operators) for _, name in operator.results}
        self.layers |= {name: operator.called for operator in reversed(operators)
                        for name in (operator.activation, operator.other) if name}  # fmt: skip
        self.data = data
        self.samples: Sequence[int] = ()    # places in the set of what the next feed holds; unknown where empty
        self.tensors: dict[str, TensorStatistics] = {}      # by the node that computes the values
        self.statistics: dict[str, TensorStatistics] = {}   # by the node that an operator reads
        batch = _batch_symbol(module, graph.inputs)
        self.at_once = max(1, min(BATCH, LARGEST // _most_values(module, batch)))      # samples in a batch
        for node in sources(module, operators):
            root = _root(node)
            if root.name not in self.tensors:
                self.tensors[root.name] = TensorStatistics()
                self._watch(module, root, _batch_axis(root, batch), self._told(node), self.tensors[root.name])
            self.statistics[node.name] = self.tensors[root.name]
        module.recompile()
        self.module = module

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """The outputs for ``feed``."""
        with torch.no_grad():
            values = self.module(**{name: torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self.inputs})
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}

    @property
    def histograms(self) -> dict[str, Histogram]:
        """Of each tensor that was collected, by node name."""
        return {name: kept.histogram for name, kept in self.statistics.items()}

    def ranges(self, config: QuantizeConfig, scheme: Scheme) -> dict[str, tuple[float, float]]:
        """Range of each tensor that was collected, by node name, chosen for the integers of ``scheme``."""
        chosen: dict[str, tuple[float, float]] = {}
        histograms = self.histograms
        for operator in self.operators:
            for name, like, integers in operator.ranged(scheme):
                if name not in chosen:
                    method = "minmax" if operator.shares and name == operator.activation else config.ranges
                    chosen[name] = choose_range(histograms[like], method, config.percentile, integers.grid,
                                                name=self.layers[like])  # fmt: skip
        return chosen

    def see(self, value: Tensor, axis: int | None, told: str, statistics: TensorStatistics) -> None:
        """Add a tensor that is called ``told``, whose ``axis`` is the batch."""
        samples = self.samples or (0,)
        rows = value.detach()
        if axis is not None and value.shape[axis] % len(samples) == 0 and (
                axis == 0 or value.shape[axis] == len(samples)):
            rows = rows.movedim(axis, 0).reshape(len(samples), -1)
        else:
            rows = rows.reshape(1, -1)
        if not rows.numel():
            return
        try:
            statistics.update(rows.numpy(), samples)
        except CalibrationError as error:
            raise CompressError(
                f"{told} is not finite on calibration set {self.data!r}, {error}: check that "
                "sample and the data's scaling, or keep the layer in float"
            ) from error

    def _told(self, node: Node) -> str:
        read = any(node.name in (operator.activation, operator.other) for operator in self.operators)
        return f"the {'input' if read else 'result'} of layer {self.layers[node.name]!r}"

    def _watch(self, module: GraphModule, node: Node, axis: int | None, told: str, kept: TensorStatistics) -> None:
        name = f"_watch_{node.name}"
        module.add_submodule(name, _Watch(lambda value: self.see(value, axis, told, kept)))
        behind = node if node.op != "placeholder" else [n for n in module.graph.nodes if n.op == "placeholder"][-1]
        with module.graph.inserting_after(behind):
            module.graph.call_module(name, (node,))


class _Watch(nn.Module):
    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def forward(self, value: Tensor) -> None:
        self.see(value)


def collect(
    run: Callable[[Feed], object], inputs: Sequence[TensorSpec], data: CalibrationSet,
    progress: Callable[[int], None] | None = None, *, done: int = 0, at_once: int = BATCH,
    before: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Give ``run`` every sample of ``data``, as many at a time as ``inputs`` allow; told how many are done.

    Args:
        run: is given feeds.
        inputs: the specs that say how large a batch may be.
        data: the samples.
        progress: called after each feed with the number of samples done.
        done: samples that were done before: they are left out.
        at_once: the most samples in a feed.
        before: called before each feed, with the places of its first sample and behind its last.
    """
    start = 0
    for feed in data.batches(largest_batch(inputs, at_once)):
        end = start + feed[inputs[0].name].shape[inputs[0].batch_axis or 0]
        if end > done:
            if before is not None:
                before(start, end)
            with told_as(f"the model fails on calibration set {data.name!r}, from sample {start} on"):
                run(feed)
            if progress is not None:
                progress(end)
        start = end


def collecting_chain(model: Model, collectors: Mapping[str, Callable[[Feed], dict[str, np.ndarray]]]) -> Callable[
        [Feed], object]:
    """The chain of ``model`` with a collector for each graph: a decoder is calibrated on its own steps.

    The prompt and the steps behind it, with the cache, are collected alike; of a long text the first :data:`STEPS`.
    """
    return chain_of(shortened(model), collectors).run


def shortened(model: Model) -> Model:
    """``model`` with at most :data:`STEPS` steps of a decoder in its chain."""
    if model.chain is None:
        return model
    steps = [dict(step) for step in model.chain["steps"]]
    for step in steps:
        if "loop" in step:
            most = min(step["loop"]["max_steps"], STEPS)
            least = min(step["loop"].get("min_steps", 0), most)
            step["loop"] = {**step["loop"], "max_steps": most, "min_steps": least}
    return dataclasses.replace(model, chain={**model.chain, "steps": steps})


def _root(node: Node) -> Node:
    """The tensor of which ``node`` is another shape, or itself."""
    while node.target in SAME_VALUES and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _batch_symbol(module: GraphModule, inputs: Sequence[TensorSpec]) -> Any:
    """The symbol that the program has for the number of samples; ``None`` where it is fixed."""
    given = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(given, inputs, strict=True):
        size = node.meta["val"].shape[spec.batch_axis] if spec.batch_axis is not None else None
        if isinstance(size, torch.SymInt):
            return size.node.expr
    return None


def _most_values(module: GraphModule, batch: Any) -> int:
    """Values of the largest tensor that ``module`` makes of one sample, with other dynamic sizes as in its example."""
    values = [node.meta.get("val") for node in module.graph.nodes]
    sizes = [value.numel() for value in values if isinstance(value, Tensor)]
    most = 1
    for size in sizes:
        if isinstance(size, torch.SymInt) and batch in size.node.expr.free_symbols:
            known = size.node.shape_env.backed_var_to_val
            given = {symbol: known.get(symbol, 1) for symbol in size.node.expr.free_symbols}
            most = max(most, int(size.node.expr.subs({**given, batch: 1})))
    return most


def _batch_axis(node: Node, batch: Any) -> int | None:
    """The axis of a tensor along which its samples lie: as many rows as there are samples, or in front a multiple."""
    value = node.meta.get("val")
    if batch is None or not isinstance(value, Tensor):
        return None
    for axis, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt):
            times = size.node.expr / batch
            if times == 1 or (axis == 0 and times.is_Integer):
                return axis
    return None
