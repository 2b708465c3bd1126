"""The graphs of a model as distillation sees them, and what is compared of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from compress.distill.attention import Attention, find_maps
from compress.distill.forcing import at_once
from compress.errors import CompressError
from compress.model import Model, ProgramGraph
from compress.program import module_path
from runtimes.spec import TensorSpec
from runtimes.wiring import TOKENS, Source, Step, Wiring


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A tensor inside a graph, and the component that computes it: the value of ``node``, or ``attention``'s map.

    ``attends`` tells maps from what components hand on.
    """

    graph: str
    component: str
    node: str
    attends: bool = False
    attention: Attention | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """What is read to have it."""
        return (self.node,) if self.attention is None else self.attention.nodes


def wiring_of(model: Model) -> Wiring:
    """How the graphs of ``model`` feed each other.

    Raises:
        CompressError: if that is not known.
    """
    if (wiring := model.wiring) is None:
        raise CompressError(
            f"model {model.name!r} has the graphs {list(model.graphs)}, of which one takes what another gives: save it "
            "with chain=, which says how, to distil it"
        )
    return wiring


def compared_sources(wiring: Wiring) -> dict[str, Source]:
    """Output of the chain -> what is compared of it: of a decoder the scores by which its tokens are picked."""
    return {name: _scores(_step(wiring, source), source) for name, source in wiring.sources.items()}


def compared_specs(model: Model) -> tuple[TensorSpec, ...]:
    """What is compared, by the names of the outputs."""
    wiring = wiring_of(model)
    specs = {step.name: {spec.name: spec for spec in model.graphs[step.graph].outputs} for step in wiring.steps}
    return tuple(dataclasses.replace(specs[str(source.step)][source.name], name=name)
                 for name, source in compared_sources(wiring).items())  # fmt: skip


def find_features(model: Model) -> list[Feature]:
    """What the components of ``model`` hand to each other, in the order they compute it; outputs are not features.

    A decoder that is trained token by token has none.
    """
    features = []
    for name, graph in _at_once(model).items():
        outputs = output_nodes(graph)
        for node in graph.program.graph.nodes:
            component = _component(model, node)
            value = node.meta.get("val")
            if component is None or node in outputs or not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            if any(_component(model, user) != component for user in node.users):
                features.append(Feature(graph=name, component=component, node=node.name))
    return features


def find_attention(model: Model) -> list[Feature]:
    """The attention maps of ``model``'s components, in the order they are computed: ``(batch, heads, queries, keys)``.
    """
    return [
        Feature(graph=name, component=component, node=node.name, attends=True, attention=attention)
        for name, graph in _at_once(model).items()
        for node, attention in find_maps(graph.program.graph)
        if (component := _component(model, node)) is not None
    ]


def output_nodes(graph: ProgramGraph) -> list[Node]:
    """The nodes of a program that its outputs are, in their order."""
    results: Any = graph.program.graph.output_node().args[0]
    return list(results)[-len(graph.outputs) :]


def _at_once(model: Model) -> dict[str, ProgramGraph]:
    """The graphs that one run of the model runs once: all but a decoder that is trained token by token."""
    single = {step.graph for step in wiring_of(model).steps
              if step.loop is not None and not at_once(step.loop, model.graphs[step.graph])}  # fmt: skip
    return {name: graph for name, graph in model.graphs.items() if name not in single}


def _step(wiring: Wiring, source: Source) -> Step:
    return next(step for step in wiring.steps if step.name == source.step)


def _scores(step: Step, source: Source) -> Source:
    return source if step.loop is None or source.name != TOKENS else Source(step.name, step.loop.logits)


def _component(model: Model, node: Node) -> str | None:
    if node.op != "call_function":
        return None
    component = model.component_of(module_path(node))
    return None if component == "other" else component
