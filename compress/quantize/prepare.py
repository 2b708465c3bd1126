"""From a quantized model to a graph that trains with fake quantization, and to the int8 program that is exported."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import torch
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
    ranges = quantization.ranges[graph]
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
    """The int8 program of a quantized model: weights as integers, quantize and dequantize nodes around operators."""
    _quantization(model)
    graphs = {name: _convert(model, name) for name in model.graphs}
    weights: dict[str, torch.Tensor] = {}
    for graph in graphs.values():
        weights.update(graph.program.state_dict)
    return dataclasses.replace(model, graphs=graphs, weights=weights, quantization=None, module=None, factory=None)


def _convert(model: Model, name: str) -> ProgramGraph:
    graph = model.graphs[name]
    prepared = prepare(model, name)
    feed = {spec.name: torch.from_numpy(model.example[spec.name]) for spec in graph.inputs}
    with torch.no_grad():
        prepared(**feed)  # lets the weights' observers see the weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert_pt2e(prepared)
    return dataclasses.replace(graph, program=trace(converted, model.example, graph.inputs))


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
        graphs[name] = dataclasses.replace(graph, program=trace(module, model.example, graph.inputs))
        weights.update({key: value.detach() for key, value in graphs[name].program.state_dict.items()})
        weights.update({k: v for k, v in graphs[name].program.constants.items() if isinstance(v, torch.Tensor)})
    return dataclasses.replace(model, graphs=graphs, weights=weights, factory=None, channels={}, module=None)


def _drop_unused(module: GraphModule) -> None:
    """Remove the parameters and buffers that no node reads; a trace would carry them into every file."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module.state_dict() if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)


def _quantization(model: Model) -> Quantization:
    if model.quantization is None:
        raise CompressError(f"model {model.name!r} is not quantized: run compress quantize first")
    return model.quantization
