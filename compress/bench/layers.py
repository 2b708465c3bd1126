"""The precision each layer really ran in, against what the Q/DQ model asks for, and what each component took."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.bench.record import ComponentRow, LayerRow
from compress.export.components import SHARED, components_in
from runtimes.arithmetic import is_arithmetic
from runtimes.backends import COMPONENT_MARK
from runtimes.engineset import EngineSet

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_QUANTIZED_PAIR = _PRODUCTS | {"Conv", "ConvTranspose"}     # int8 where both operands are
_INTEGERS = frozenset({"int8", "int4"})


def rows(layers: Iterable[Mapping[str, Any]]) -> tuple[LayerRow, ...]:
    """The layers that a measuring process read back, each with its component.

    Args:
        layers: the fields of :class:`runtimes.backends.Layer`, and the graph's name.
    """
    found = []
    for layer in layers:
        kept: dict[str, Any] = {key: value for key, value in layer.items() if key != "nodes"}
        found.append(LayerRow(**kept, component=_component(layer["name"], layer["type"], layer.get("nodes") or ())))
    return tuple(found)


def precisions(layers: Iterable[LayerRow]) -> dict[str, int]:
    """Number of arithmetic layers by the precision they ran in."""
    return dict(sorted(Counter(layer.precision for layer in layers if is_arithmetic(layer.type)).items()))


def by_component(layers: Sequence[LayerRow]) -> dict[str, ComponentRow]:
    """Component -> its layers together, the slowest first; empty where no layer tells its component.

    A layer that tells none is ``shared``, and so is one that serves several components.
    """
    groups: dict[str, list[LayerRow]] = {}
    for layer in layers:
        groups.setdefault(layer.component or SHARED, []).append(layer)
    if all(layer.component is None for layer in layers):
        return {}
    made = {name: _together(group) for name, group in groups.items()}
    return dict(sorted(made.items(), key=lambda item: (-(item[1].time_us or 0.0), item[0])))


def macs_by_precision(layers: Iterable[LayerRow]) -> dict[str, int]:
    """Multiply-accumulates by the precision they ran in, of the layers whose shapes tell them."""
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.macs:
            found[layer.precision] += layer.macs
    return dict(sorted(found.items()))


def unexpected(asked: Mapping[str, Mapping[str, str]], layers: Sequence[LayerRow]) -> tuple[str, ...]:
    """The layers that run what ``asked`` wants in integers in floats, as "name: type in precision (seen)".

    ``asked`` is by graph, whose name stands before a layer's where the layers are of several. In brackets stands what
    the backend shows of it, and its reason or that it gives none. Backends keep the name of the ONNX node in that of
    the layer they fuse it into, or take that of its output tensor. An operator found under neither name was fused
    beyond recognition and is not reported.
    """
    several = len({layer.graph for layer in layers}) > 1
    found = []
    for graph, wanted in asked.items():
        own = [layer for layer in layers if layer.graph == graph and is_arithmetic(layer.type)]
        for node, output in wanted.items():
            # "_original" is OpenVINO's mark of a layer whose name went to the dequantization behind it.
            name = re.compile(rf"(?<!\w)({re.escape(node)}|{re.escape(output)})(_original)?(?!\w)")
            found += [_told(f"{graph}: {node}" if several else node, layer) for layer in own
                      if name.search(layer.name) and layer.precision not in _INTEGERS]
    return tuple(found)


def asked_for_int8(onnx_file: Path) -> dict[str, str]:
    """Node name -> output name of each operator of a Q/DQ model whose two operands are both dequantized integers.

    And of each product whose second operand is a weight in integers, if its first is not.
    """
    import onnx

    graph = onnx.load(onnx_file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name: node.output[0] for node in graph.node
            if (node.op_type in _QUANTIZED_PAIR and set(node.input[:2]) <= dequantized.keys())
            or (node.op_type in _PRODUCTS and dequantized.get(node.input[1]) in constants)}


def asked_of(engines: EngineSet) -> dict[str, dict[str, str]]:
    """What the graphs of int8 engines ask for, by graph, of those whose folders hold the ONNX file."""
    files = {graph: sorted(engine.path.glob("*.onnx")) for graph, engine in engines.engines.items()
             if engine.precision == "int8"}
    return {graph: asked_for_int8(found[0]) for graph, found in files.items() if len(found) == 1}


def _component(name: str, kind: str, nodes: Sequence[str]) -> str | None:
    """Whose a layer is: of one fused across components that of its arithmetic operator, after which it is called."""
    arithmetic = [node for node in nodes if is_arithmetic(kind) and is_arithmetic(node.rpartition(COMPONENT_MARK)[2])]
    for texts in ([name] if arithmetic else [], arithmetic, nodes, [name]):
        found = components_in(" ".join(texts))
        if found:
            return found[0] if len(found) == 1 else SHARED
    return None


def _together(layers: Sequence[LayerRow]) -> ComponentRow:
    times: dict[str, float] = {}
    for layer in layers:
        if layer.time_us is not None:
            times[layer.precision] = times.get(layer.precision, 0.0) + layer.time_us
    return ComponentRow(
        layers=len(layers), time_us=round(sum(times.values()), 3) if times else None, precisions=precisions(layers),
        times_us={name: round(time, 3) for name, time in sorted(times.items())}, macs=macs_by_precision(layers),
    )  # fmt: skip


def _told(node: str, layer: LayerRow) -> str:
    seen = layer.seen or ""     # a reason stands behind its semicolon
    told = seen if ";" in seen else "; ".join(part for part in (seen, "the backend gives no reason") if part)
    return f"{node}: {layer.type} in {layer.precision} ({told})"
