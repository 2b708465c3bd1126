"""From a quantized model to a graph that trains with fake quantization, and to the int8 program that is exported."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from compress.errors import CompressError
from compress.model import Model, ProgramGraph, Quantization
from compress.quantize.annotate import Operator, SchemeQuantizer, operators_of
from compress.quantize.fold import agree
from compress.quantize.groups import fix_groups, put_groups
from compress.quantize.lifted import lifted
from compress.quantize.schemes import get_scheme


def int8_operators(operators: Sequence[Operator]) -> list[Operator]:
    return [operator for operator in operators if operator.float_reason is None]


def prepare(model: Model, graph: str) -> GraphModule:
    """The float program of ``graph`` with a fake quantizer on every tensor the ranges name; deterministic.

    Its parameters carry the model's own names, and can be trained; activation ranges are fixed, weight ranges follow
    the weights.
    """
    quantization = _quantization(model)
    module = model.graphs[graph].program.module(check_guards=False)
    scheme = get_scheme(quantization.scheme)
    chosen = int8_operators(operators_of(module, quantization))
    ranges = quantization.ranges.get(graph, {})
    missing = [o for o in chosen if any(name not in ranges for name, _, _ in o.ranged(scheme))]
    if missing:
        raise CompressError(f"model {model.name!r} lacks a range of {missing[0].path!r}: quantize it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns about its own deprecated calls
        prepared: GraphModule = prepare_qat_pt2e(
            module, SchemeQuantizer(scheme, ranges, chosen)
        )
    put_groups(prepared, {o.node: o.alone for o in chosen if o.alone is not None and o.alone.group is not None})
    return prepared


def is_quantized(model: Model, graph: str) -> bool:
    """Whether something in ``graph`` is quantized."""
    if model.quantization is None or model.quantization.ranges.get(graph):
        return model.quantization is not None
    module = model.graphs[graph].program.module(check_guards=False)
    return bool(model.quantization.weight_only and int8_operators(operators_of(module, model.quantization)))


def convert(model: Model) -> Model:
    """The int8 program of a quantized model: weights as integers, quantize and dequantize nodes around operators.

    A graph in which nothing runs in int8 stays as it is.
    """
    _quantization(model)
    graphs = {name: _convert(model, name) for name in model.graphs}
    weights: dict[str, torch.Tensor] = {}
    for name, graph in graphs.items():
        _rename_others(name, graph.program, weights)
        weights.update(graph.program.state_dict)
        weights.update({k: v for k, v in graph.program.constants.items() if isinstance(v, torch.Tensor)})
    return dataclasses.replace(model, graphs=graphs, weights=weights, quantization=None, module=None, factory=None)


def _convert(model: Model, name: str) -> ProgramGraph:
    graph = model.graphs[name]
    if not int8_operators(operators_of(graph.program.module(check_guards=False), _quantization(model))):
        return graph
    prepared = prepare(model, name)
    _show_weights(prepared)
    fix_groups(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert_pt2e(prepared)
    return dataclasses.replace(graph, program=lifted(converted, graph.program))


def _show_weights(module: GraphModule) -> None:
    """Run what is computed of parameters alone: weights' observers have to see the weights."""
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "get_attr":
                values[node] = attrgetter(node.target)(module)
            elif node.all_input_nodes and all(source in values for source in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                call = module.get_submodule(node.target) if node.op == "call_module" else node.target
                values[node] = call(*args, **kwargs)


def _rename_others(graph: str, program: ExportedProgram, weights: Mapping[str, torch.Tensor]) -> None:
    """torchao calls the scales and integers of every program ``_scale_0`` and on: keep those of two graphs apart."""
    for spec in program.graph_signature.input_specs:
        held = program.constants if spec.target in program.constants else program.state_dict
        if spec.target in held and not agree(held[spec.target], weights.get(spec.target)):
            held[f"{graph}_{spec.target}"] = held.pop(spec.target)
            spec.target = f"{graph}_{spec.target}"


def _quantization(model: Model) -> Quantization:
    if model.quantization is None:
        raise CompressError(f"model {model.name!r} is not quantized: run compress quantize first")
    return model.quantization
