"""The float program of a graph and its fake-quantized one, run side by side on the same samples, part by part.

Methods that choose a layer's integers or its bias compare what it gives with what it should give, on inputs that the
layers before have already erred in. All samples are in memory at once, but of each only what later parts still read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from compress.model import Model, ProgramGraph
from compress.program import module_path
from compress.quantize.grid import WeightGrid
from compress.quantize.groups import grid_of
from compress.quantize.prepare import prepare
from compress.quantize.scaling import LAYERS
from compress.weights import storage
from runtimes.spec import Feed


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operator whose weight is quantized per channel: it, its weight's fake quantizer, and its parameters.

    ``bias`` is ``None`` where it has none, or one that something else reads too.
    """

    node: Node
    path: str
    fake: str
    weight: str
    grid: WeightGrid        # of the weight
    bias: Node | None

    @property
    def activation(self) -> str:
        """The node of what it reads."""
        return str(self.node.args[0].name)  # type: ignore[union-attr]

    @property
    def axis(self) -> int:
        """Of the channels in what it gives."""
        return LAYERS[self.node.target]


class Lockstep:
    """One graph of a quantized ``model`` on ``feeds``.

    Attributes:
        layers: operator -> what is known of it, for the operators whose weights nothing else reads.
        shared: module paths of the others.
        values: node -> what does not depend on the inputs, in the fake-quantized program; may be replaced.
    """

    def __init__(self, model: Model, graph: str, feeds: Sequence[Feed]) -> None:
        self.int8 = _Side(prepare(model, graph))
        self.float = _Side(model.graphs[graph].program.module(check_guards=False))
        self.values = self.int8.constants
        self.layers, self.shared = _layers(model, self.int8.module)
        inputs = [spec.name for spec in model.graphs[graph].inputs]
        self._feeds = [[torch.from_numpy(np.ascontiguousarray(feed[name])) for name in inputs] for feed in feeds]

    def parts(self, blocks: Sequence[Sequence[Node]] = ()) -> Iterator[Part]:
        """Each part of the program in the order they run: the nodes of a block, or one node that is in none.

        What the caller changes in :attr:`values` before it asks for the next part is what this one runs with.
        """
        order = scheduled(self.int8.nodes, blocks)
        floats, int8s = ([side.bound(given) for given in self._feeds] for side in (self.float, self.int8))
        last = self._last_reads(order)
        for place, nodes in enumerate(order):
            own = [self.float.named[node.name] for node in nodes if node.name in self.float.named]
            for values in floats:
                self.float.compute(own, values)
            wanted = [values.get(nodes[-1].name) for values in floats]
            yield Part(nodes=nodes, wanted=wanted, given=int8s, side=self.int8)
            for values in int8s:
                self.int8.compute(nodes, values)
            dead = [name for name, end in last.items() if end == place]
            for values in (*floats, *int8s):
                for name in dead:
                    values.pop(name, None)

    def _last_reads(self, order: Sequence[Sequence[Node]]) -> dict[str, int]:
        """Value -> the place in ``order`` behind which neither program needs it."""
        last: dict[str, int] = {}
        for place, nodes in enumerate(order):
            for node in nodes:
                last[node.name] = place
                for held in (node, self.float.named.get(node.name, node)):
                    last.update(dict.fromkeys((source.name for source in held.all_input_nodes), place))
        return last


@dataclass(frozen=True, kw_only=True)
class Part:
    """Nodes that run together; ``wanted`` is what the last of them gives in float, feed by feed."""

    nodes: Sequence[Node]
    wanted: Sequence[Any]
    given: Sequence[Mapping[str, Any]]      # of each feed: the values that the fake-quantized program has so far
    side: _Side

    def run(self, feed: int, changed: Mapping[str, Tensor] | None = None) -> Any:
        """What the last node gives in the fake-quantized program, with ``changed`` in place of nodes' values."""
        values = {**self.given[feed], **(changed or {})}
        self.side.compute(self.nodes, values, grad=torch.is_grad_enabled())
        return values[self.nodes[-1].name]


class _Side(Interpreter):
    """A program of which any nodes can be run, on values by name."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.module: GraphModule = module
        self.named = {node.name: node for node in module.graph.nodes}
        self.constants: dict[str, Any] = {}
        self.nodes: list[Node] = []
        varying: set[Node] = set()
        for node in module.graph.nodes:
            if node.op == "placeholder" or varying & set(node.all_input_nodes):
                varying.add(node)
                if node.op not in ("placeholder", "output"):
                    self.nodes.append(node)
            elif node.op != "output":
                self.compute([node], self.constants)
        self.inputs = [node.name for node in module.graph.nodes if node.op == "placeholder"]

    def bound(self, given: Sequence[Tensor]) -> dict[str, Any]:
        return dict(zip(self.inputs, given, strict=True))

    def compute(self, nodes: Iterable[Node], values: dict[str, Any], *, grad: bool = False) -> None:
        """Run ``nodes`` and put what they give into ``values``."""
        self.env = _Values(values, self.constants)  # type: ignore[assignment]
        with torch.set_grad_enabled(grad):
            for node in nodes:
                values[node.name] = self.run_node(node)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        return value.detach() if n.op == "get_attr" and isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:     # it is run again
            args = (args[0].clone(), *args[1:])
        return super().call_function(target, args, kwargs)


class _Values:
    """Values by node, as an interpreter reads them."""

    def __init__(self, *held: Mapping[str, Any]) -> None:
        self.held = held

    def __getitem__(self, node: Node) -> Any:
        return next(values[node.name] for values in self.held if node.name in values)

    def __contains__(self, node: Node) -> bool:
        return any(node.name in values for values in self.held)


def scheduled(nodes: Sequence[Node], blocks: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """``nodes`` in an order in which those of a block are neighbours: at the place of its last."""
    block_of = {node: list(block) for block in blocks for node in block}
    order: list[list[Node]] = []
    late: list[Node] = []       # waiting for a block that has not run
    missing: set[Node] = set()
    for node in nodes:
        block = block_of.get(node)
        if block is not None and node is not block[-1]:
            missing.add(node)
        elif block is None and missing & set(node.all_input_nodes):
            late.append(node)
            missing.add(node)
        else:
            order.append(block or [node])
            missing -= set(block or ())
            waiting, late = late, []
            for one in waiting:
                if (missing - {one}) & set(one.all_input_nodes):
                    late.append(one)
                else:
                    missing.discard(one)
                    order.append([one])
    return order


def _layers(model: Model, prepared: GraphModule) -> tuple[dict[str, Layer], list[str]]:
    """The layers whose weights nothing else reads, by operator, and the module paths of those of which this is not so.
    """
    reads = _reads(model)

    def alone(node: Any) -> bool:
        return isinstance(node, Node) and node.op == "get_attr" and _key(model, node) is not None and (
            reads[_key(model, node)] == 1)

    layers, shared = {}, []
    for node in prepared.graph.nodes:
        fake: Any = node.args[1] if node.target in LAYERS else None
        if not isinstance(fake, Node) or fake.op != "call_module":
            continue
        grid = grid_of(prepared.get_submodule(str(fake.target)))
        if grid is None:
            continue
        weight: Any = fake.args[0]
        if not alone(weight):
            shared.append(module_path(node))
            continue
        bias = node.args[2] if len(node.args) > 2 else None
        layers[node.name] = Layer(
            node=node, path=module_path(node), fake=fake.name, weight=str(weight.target), grid=grid,
            bias=bias if alone(bias) else None,
        )  # fmt: skip
    return layers, shared


def _reads(model: Model) -> Counter[Any]:
    """How many operators of all graphs read each parameter."""
    nodes = [node for graph in model.graphs.values() for node in graph.program.module(check_guards=False).graph.nodes]
    return Counter(_key(model, node) for node in nodes if node.op == "get_attr" for _ in node.users)


def _key(model: Model, node: Node) -> Any:
    value = model.weights.get(str(node.target))
    return None if value is None else storage(value)


def peak_bytes(graph: ProgramGraph, feed: Feed) -> int:
    """Bytes of the values that the float program of ``graph`` holds at once on ``feed``, inputs included."""
    side = _Side(graph.program.module(check_guards=False))
    values = side.bound([torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in graph.inputs])
    last = {source: node for node in side.nodes for source in node.all_input_nodes}
    held = {name: _bytes(value) for name, value in values.items()}
    most = sum(held.values())
    for node in side.nodes:
        side.compute([node], values)
        held[node.name] = _bytes(values[node.name])
        most = max(most, sum(held.values()))
        for source in [*node.all_input_nodes, node]:
            if last.get(source, node) is node:
                values.pop(source.name, None)
                held.pop(source.name, None)
    return most


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
