"""From a quantized model to a graph that trains with fake quantization, and to the int8 program that is exported."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from compress.errors import CompressError
from compress.model import Model, ProgramGraph, Quantization
from compress.program import trace
from compress.quantize.annotate import Operator, SchemeQuantizer, find_operators
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
    chosen = int8_operators(find_operators(module, quantization.keep_float))
    ranges = quantization.ranges.get(graph, {})
    missing = [o for o in chosen if o.activation not in ranges]
    if missing:
        raise CompressError(
            f"model {model.name!r} has no range for the input of {missing[0].path!r}: quantize it again"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns about its own deprecated calls
        prepared: GraphModule = prepare_qat_pt2e(
            module, SchemeQuantizer(get_scheme(quantization.scheme), ranges, chosen)
        )
    return prepared


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
    module = graph.program.module(check_guards=False)
    if not int8_operators(find_operators(module, _quantization(model).keep_float)):
        return graph
    prepared = prepare(model, name)
    feed = {spec.name: torch.from_numpy(model.example[spec.name]) for spec in graph.inputs}
    with torch.no_grad():
        prepared(**feed)  # lets the weights' observers see the weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert_pt2e(prepared)
    return dataclasses.replace(graph, program=trace(converted, model.example, graph.inputs))


def _rename_others(graph: str, program: ExportedProgram, weights: Mapping[str, torch.Tensor]) -> None:
    """torchao calls the scales and integers of every program ``_scale_0`` and on: keep those of two graphs apart."""
    for spec in program.graph_signature.input_specs:
        held = program.constants if spec.target in program.constants else program.state_dict
        if spec.target in held and not _agree(held[spec.target], weights.get(spec.target)):
            held[f"{graph}_{spec.target}"] = held.pop(spec.target)
            spec.target = f"{graph}_{spec.target}"


def _agree(value: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is None or (value.shape == other.shape and torch.equal(value, other))


def fold_batch_norms(model: Model) -> Model:
    """``model`` with each batch normalisation behind a convolution folded into it, or ``model`` where there is none."""
    norms = {torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default}
    if not any(n.target in norms for g in model.graphs.values() for n in g.program.graph.nodes):
        return model
    graphs = {}
    weights: dict[str, torch.Tensor] = {}
    for name, graph in model.graphs.items():
        module = graph.program.module(check_guards=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fuse_conv_bn_(module)
        _drop_unused(module)
        program = trace(module, model.example, graph.inputs)
        held = {**program.state_dict, **program.constants}
        held = {key: value.detach() for key, value in held.items() if isinstance(value, torch.Tensor)}
        odd = next((key for key, value in held.items() if not _agree(value, weights.get(key))), None)
        if odd is not None:
            raise CompressError(
                f"graph {name!r} of {model.name!r} runs {odd!r} without the batch normalisation that another graph "
                "runs behind it, so it cannot be folded in for both: give the graphs a layer each"
            )
        weights.update(held)
        graphs[name] = dataclasses.replace(graph, program=program)
    return dataclasses.replace(model, graphs=graphs, weights=weights, factory=None, channels={}, module=None)


def _drop_unused(module: GraphModule) -> None:
    """Remove the parameters and buffers that no node reads; a trace would carry them into every file.

    A program holds all of its module's, also those of other graphs, which may be folded there.
    """
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module.state_dict() if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)


def _quantization(model: Model) -> Quantization:
    if model.quantization is None:
        raise CompressError(f"model {model.name!r} is not quantized: run compress quantize first")
    return model.quantization
