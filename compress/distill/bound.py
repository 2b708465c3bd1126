"""What is trained: a model's graphs with parameters of their own, as one function from feed to tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from compress.distill.forcing import forced, tokens_key
from compress.distill.graphs import Feature, compared_sources, compared_specs, output_nodes, wiring_of
from compress.distill.placement import CPU, place
from compress.model import Model, ProgramGraph
from compress.weights import storage
from runtimes.spec import Feed


class Bound:
    """The chain of a model as a function from feed to a flat list of tensors: what is compared, then the features.

    What is compared are the outputs of the chain; of a decoder, in place of its tokens, the scores ``(batch, steps,
    tokens)`` of each step after the tokens that the feed has under :func:`compress.distill.forcing.tokens_key`.

    Attributes:
        compared: what each of the first tensors is.
        batch_axes: of each tensor, or ``None`` where samples cannot be told apart (a similarity matrix of the whole
            batch, a tensor that does not depend on the inputs).
    """

    def __init__(self, model: Model, features: Sequence[Feature], device: torch.device = CPU) -> None:
        self.wiring = wiring_of(model)
        self.device = device
        self.graphs: dict[str, Traced] = {}
        copies: dict[Any, nn.Parameter] = {}
        for name, graph in model.graphs.items():
            own = [feature for feature in features if feature.graph == name]
            self.graphs[name] = Traced(_module(model, name), graph, own, copies, device)
        self.module = nn.ModuleList([graph.module for graph in self.graphs.values()])
        self.compared = compared_specs(model)
        self._sources = list(compared_sources(self.wiring).values())
        self.features = list(features)
        of = {step.name: self.graphs[step.graph] for step in self.wiring.steps}
        results = [of[str(source.step)].axis_of(source.name) for source in self._sources]
        self.batch_axes = (*results, *(self.graphs[feature.graph].axes[feature.nodes[0]] for feature in features))

    def __call__(self, feed: Mapping[str, Tensor]) -> Sequence[Tensor]:
        done: dict[str, Mapping[str, Tensor]] = {}
        found: dict[Feature, Tensor] = {}
        for step in self.wiring.steps:
            graph = self.graphs[step.graph]
            given = {name: feed[source.name] if source.step is None else done[source.step][source.name]
                     for name, source in step.inputs.items()}  # fmt: skip
            run = graph.run if step.loop is None else forced(
                graph.run, step.loop, graph.graph, picked=feed[tokens_key(step.name)])
            done[step.name], features = run(given)
            found.update(features)
        return [done[str(source.step)][source.name] for source in self._sources] + [found[f] for f in self.features]

    def runs(self) -> dict[str, Callable[[Feed], dict[str, np.ndarray]]]:
        """Graph -> a function that runs it, as it is now, on arrays: for :func:`compress.program.chain_of`."""
        return {name: graph.on_arrays for name, graph in self.graphs.items()}

    def named(self) -> dict[str, nn.Parameter]:
        """What trains, by the model's names."""
        return {name: value for graph in self.graphs.values() for name, value in graph.module.named_parameters()}

    def parameters(self) -> dict[str, Tensor]:
        """A copy of what trains, by the model's names, in the processor's memory."""
        return {name: value.detach().to(CPU, copy=True) for name, value in self.named().items()}


class Traced:
    """One graph with parameters of its own, those of the same tensor shared through ``copies``.

    Attributes:
        axes: node of the program, an output's or a feature's -> its batch axis, or ``None``.
    """

    def __init__(
        self, module: GraphModule, graph: ProgramGraph, features: Sequence[Feature], copies: dict[Any, nn.Parameter],
        device: torch.device,
    ) -> None:  # fmt: skip
        _own_parameters(module, copies, device)
        place(module, device)
        self.graph = graph
        self._device = device
        self._features = list(features)
        nodes = {node.name: node for node in module.graph.nodes}
        output = module.graph.output_node()
        output.args = ((*_nodes(output), *(nodes[name] for feature in features for name in feature.nodes)),)
        module.graph.set_codegen(CodeGen())  # plain arguments in the order of the specs, a plain tuple of results
        self.module = GraphModule(module, module.graph)
        batch = _batch_symbol(graph)
        by_name = {node.name: node for node in graph.program.graph.nodes}
        self._outputs = {spec.name: node.name for spec, node in zip(graph.outputs, output_nodes(graph), strict=True)}
        wanted = [*self._outputs.values(), *(feature.nodes[0] for feature in features)]
        self.axes = {name: _batch_axis(by_name[name], batch) for name in wanted}

    def axis_of(self, output: str) -> int | None:
        """The batch axis of an output."""
        return self.axes[self._outputs[output]]

    def run(self, feed: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[Feature, Tensor]]:
        """The outputs by name, and the features."""
        values = self.module(*[feed[spec.name] for spec in self.graph.inputs])
        read = iter(values[len(self._outputs) :])
        found = {}
        for feature in self._features:
            own = [next(read) for _ in feature.nodes]
            found[feature] = own[0] if feature.attention is None else feature.attention.of(own)
        return dict(zip(self._outputs, values, strict=False)), found

    def on_arrays(self, feed: Feed) -> dict[str, np.ndarray]:
        """The outputs by name, without a gradient."""
        with torch.no_grad():
            outputs, _ = self.run({name: torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
                                   for name, array in feed.items()})  # fmt: skip
        return {name: value.cpu().numpy() for name, value in outputs.items()}


def keep_zeros(bound: Bound, names: Iterable[str]) -> None:
    """What is zero in these parameters has no gradient from now on: without weight decay AdamW leaves it there."""
    parameters = bound.named()
    for name in names:
        if name in parameters:
            parameter = parameters[name]
            left = (parameter.detach() != 0).to(parameter.dtype)
            parameter.register_hook(functools.partial(torch.mul, left))  # type: ignore[no-untyped-call]


def bind(model: Model, features: Sequence[Feature] = (), device: torch.device = CPU) -> Bound:
    """The graphs of ``model`` with parameters of their own; with fake quantizers where the model is quantized."""
    return Bound(model, features, device)


def _module(model: Model, graph: str) -> GraphModule:
    if model.quantization is not None:
        from compress.quantize.prepare import is_quantized, prepare

        if is_quantized(model, graph):
            return prepare(model, graph)
    module: GraphModule = model.graphs[graph].program.module(check_guards=False)
    return module


def _own_parameters(module: GraphModule, copies: dict[Any, nn.Parameter], device: torch.device) -> None:
    """Put copies in place of the parameters, which are the model's own; one copy for all names of a tied weight."""
    for name, value in list(module.named_parameters(remove_duplicate=False)):
        if (key := storage(value)) not in copies:
            copies[key] = nn.Parameter(value.detach().to(device, copy=True),
                                       requires_grad=value.is_floating_point())  # fmt: skip
        path, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(path), attribute, copies[key])


def _nodes(output: Node) -> list[Node]:
    return list(output.args[0])  # type: ignore[arg-type]


def _batch_symbol(graph: ProgramGraph) -> Any:
    nodes = {node.name: node for node in graph.program.graph.nodes}
    for spec, name in zip(graph.inputs, graph.program.graph_signature.user_inputs, strict=True):
        if spec.batch_axis is not None:
            return nodes[str(name)].meta["val"].shape[spec.batch_axis]
    return None


def _batch_axis(node: Node, batch: Any) -> int | None:
    """The one axis of ``node``'s value that is the batch; ``None`` where there is none, or more than one."""
    if not isinstance(batch, torch.SymInt):
        return None
    symbol = batch.node.expr
    axes = [
        axis for axis, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt) and symbol in size.node.expr.free_symbols
    ]  # fmt: skip
    if len(axes) == 1 and node.meta["val"].shape[axes[0]].node.expr == symbol:
        return axes[0]
    return None
