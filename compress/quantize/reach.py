"""Which inputs of a model reach each of its operators, through all graphs of its chain: the modality of a component."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule

from compress.model import Model, ProgramGraph
from runtimes.wiring import TOKENS, Step

Reach = frozenset[str]
"""Modalities: of the inputs that a value depends on."""

_SIZES = {torch.ops.aten.sym_size.int}  # what depends on how long an input is does not depend on what it says


def reaching(model: Model) -> dict[str, dict[str, Reach]]:
    """Graph -> node of its program -> the modalities of the model's inputs that its value depends on.

    The tokens that a decoder picks itself are text, and what it keeps in its cache is what its last step made of them.
    A graph that several steps run is reached by what reaches any of them.
    """
    wiring = model.wiring
    assert wiring is not None
    modules = {name: graph.program.module(check_guards=False) for name, graph in model.graphs.items()}
    given = {spec.name: frozenset((str(spec.modality),)) for spec in wiring.inputs}
    found: dict[str, dict[str, Reach]] = {name: {} for name in model.graphs}
    results: dict[str, dict[str, Reach]] = {}
    for step in wiring.steps:
        inputs = {name: given[source.name] if source.step is None else results[source.step][source.name]
                  for name, source in step.inputs.items()}  # fmt: skip
        nodes, outputs = _step(step, model.graphs[step.graph], modules[step.graph], inputs)
        results[step.name] = outputs
        known = found[step.graph]
        known |= {name: reach | known.get(name, frozenset()) for name, reach in nodes.items()}
    return found


def _step(
    step: Step, graph: ProgramGraph, module: GraphModule, inputs: Mapping[str, Reach]
) -> tuple[dict[str, Reach], dict[str, Reach]]:
    """What reaches the nodes and the outputs of one step; a loop is followed until its cache holds nothing new."""
    if step.loop is None:
        return _through(graph, module, inputs)
    told = dict(inputs)
    told.setdefault(step.loop.token, frozenset(("text",)))
    while True:
        nodes, outputs = _through(graph, module, told)
        state = {name: told.get(name, frozenset()) | outputs[source] for name, source in step.loop.state.items()}
        if all(told.get(name) == reach for name, reach in state.items()):
            return nodes, {TOKENS: outputs[step.loop.logits]}
        told |= state


def _through(
    graph: ProgramGraph, module: GraphModule, inputs: Mapping[str, Reach]
) -> tuple[dict[str, Reach], dict[str, Reach]]:
    """What reaches each node, and each output by name, given what reaches the inputs; nothing reaches a constant."""
    waiting = iter(graph.inputs)
    nodes: dict[str, Reach] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            nodes[node.name] = inputs.get(next(waiting).name, frozenset())
        elif node.target in _SIZES:
            nodes[node.name] = frozenset()
        else:
            nodes[node.name] = frozenset().union(*(nodes[source.name] for source in node.all_input_nodes))
    values = {spec.name: nodes[node.name] for spec, node in zip(graph.outputs, _outputs(module), strict=True)}
    return nodes, values


def _outputs(module: GraphModule) -> list[torch.fx.Node]:
    """The nodes of the outputs, in their order; one may be given twice."""
    return list(module.graph.output_node().args[0])  # type: ignore[arg-type]
