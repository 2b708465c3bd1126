"""The parts of a model that may run in int8 or in float as one: a component, a modality, a block, a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.model import Model
from compress.program import module_path
from compress.quantize.annotate import find_operators, operators_of
from compress.quantize.prepare import int8_operators
from compress.quantize.reach import Reach, reaching
from compress.quantize.results import quantized_behind

Kind = Literal["component", "modality", "block", "layer"]
MANY = 40       # layers, of which blocks are looked at in place of each


@dataclass(frozen=True, kw_only=True)
class Part:
    """The int8 operators at the module paths ``paths``; an operator's path is what ``keep_float`` matches.

    ``modality`` is what reaches the part: "image", or "image + text" where several do.
    """

    name: str
    kind: Kind
    paths: tuple[str, ...]
    components: tuple[str, ...]
    modality: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The int8 operators at one module path: ``nodes`` are (graph, node of its program).

    ``results`` are nodes whose values they quantize for whoever reads them, where they alone are in int8.
    """

    path: str
    component: str
    nodes: tuple[tuple[str, str], ...]
    reach: Reach
    results: tuple[tuple[str, str], ...] = ()


def layers_of(model: Model) -> tuple[Layer, ...]:
    """What runs in int8 in a quantized ``model``, by module path, in the order it runs."""
    reach = reaching(model)
    nodes: dict[str, list[tuple[str, str]]] = {}
    results: dict[str, list[tuple[str, str]]] = {}
    for name, graph in model.graphs.items():
        module = graph.program.module(check_guards=False)
        quantization = model.quantization
        found = find_operators(module) if quantization is None else operators_of(module, quantization)
        for operator in int8_operators(found):
            nodes.setdefault(operator.path, []).append((name, operator.node))
            alone = quantized_behind(module, {operator.node}).get(operator.node, ())
            results.setdefault(operator.path, []).extend((name, result) for result, _ in alone)
    return tuple(
        Layer(path=path, component=model.component_of(path), nodes=tuple(found), results=tuple(results[path]),
              reach=frozenset().union(*(reach[graph].get(node, frozenset()) for graph, node in found)))
        for path, found in nodes.items()
    )  # fmt: skip


def parts_of(layers: Sequence[Layer], kind: Kind) -> tuple[Part, ...]:
    """The parts of one kind, in the order in which the first layer of each runs; each layer is in one of them.

    The modality of a component is what reaches any of its layers.
    """
    owned: dict[str, Reach] = {}
    for layer in layers:
        owned[layer.component] = owned.get(layer.component, frozenset()) | layer.reach
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        name = {"component": layer.component, "modality": told(owned[layer.component]), "block": block_of(layer.path),
                "layer": layer.path}[kind]  # fmt: skip
        groups.setdefault(name, []).append(layer)
    return tuple(
        Part(
            name=name, kind=kind, paths=tuple(layer.path for layer in group),
            components=tuple(dict.fromkeys(layer.component for layer in group)),
            modality=told(frozenset().union(*(layer.reach for layer in group))),
        )
        for name, group in groups.items()
    )  # fmt: skip


def fine(layers: Sequence[Layer]) -> Kind:
    """The finest kind of parts worth looking at one by one."""
    return "layer" if len(layers) <= MANY else "block"


def block_of(path: str) -> str:
    """The block a module belongs to: ``vision.blocks.3`` of ``vision.blocks.3.attention.query``.

    Repeated modules stand in lists, by number: the path up to its first number is the block. A module of no list, and
    a number at the end, which is a layer of an ``nn.Sequential``, are blocks of their own.
    """
    names = path.split(".")
    end = next((at for at, name in enumerate(names) if name.isdigit()), len(names) - 1)
    return ".".join(names[: end + 1])


def told(reach: Reach) -> str:
    """``image + text``; ``nothing`` of what depends on no input."""
    return " + ".join(sorted(reach)) or "nothing"


def as_components(model: Model, parts: Sequence[Part]) -> dict[str, str]:
    """``components`` for ``model`` in which every path of a part is one, so that an engine's layers tell it.

    Each is called by the number of its part, which :func:`part_of_component` reads back. What only works on the result
    of one part's operators, such as an activation function in a module of its own, is that part's too: backends make
    one layer of both, and call it after either.
    """
    number = {path: at for at, part in enumerate(parts) for path in part.paths}
    owned: dict[str, set[int]] = {}
    for graph in model.graphs.values():
        owners: dict[str, set[int]] = {}
        for node in graph.program.module(check_guards=False).graph.nodes:
            path = module_path(node)
            before = set().union(*(owners[source.name] for source in node.all_input_nodes))
            owners[node.name] = {number[path]} if path in number and node.op == "call_function" else before
            if node.op == "call_function" and path not in number:
                owned.setdefault(path, set()).update(before or {-1})
    number |= {path: min(found) for path, found in owned.items() if len(found) == 1 and min(found) >= 0}
    return {f"{part}-{at}": path for at, (path, part) in enumerate(number.items())}


def part_of_component(name: str | None) -> int | None:
    """The number of the part that :func:`as_components` called so; None of what belongs to no part."""
    number, dash, _ = (name or "").partition("-")
    return int(number) if dash and number.isdigit() else None
