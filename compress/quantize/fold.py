"""What a float program computes from its weights alone is computed once, before ranges are chosen.

And what it writes into parts of a tensor becomes a tensor of its own, so that who reads it reads what was written.

A batch normalisation behind a convolution becomes part of it; a weight that is cut out of a packed one or made of
several (``nn.MultiheadAttention`` on keys of the queries' width, a weight norm) becomes a weight. What is a layer in
other words becomes one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from compress.errors import CompressError
from compress.model import Model
from compress.quantize.annotate import WEIGHTED, weights_behind
from compress.quantize.attention import expose, fused
from compress.quantize.layers import PADDED, as_linear, write_layers
from compress.quantize.lifted import lifted

_NORMS = {torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default}


def fold(model: Model) -> Model:
    """``model`` with the same function and all of that computed, or ``model`` where there is nothing.

    Raises:
        CompressError: if a layer that two graphs share can be folded in one of them only.
    """
    model = _without_writes(model)
    if not any(_to_fold(graph.program.module(check_guards=False)) for graph in model.graphs.values()):
        return model
    graphs = {}
    weights: dict[str, Tensor] = {}
    for name, graph in model.graphs.items():
        module = graph.program.module(check_guards=False)
        write_layers(module)
        _fold_norms(module)
        _fold_computed(module, weights)
        expose(module)
        module.graph.eliminate_dead_code()
        program = lifted(module, graph.program)
        held = {**program.state_dict, **program.constants}
        held = {key: value.detach() for key, value in held.items() if isinstance(value, Tensor)}
        odd = next((key for key, value in held.items() if not agree(value, weights.get(key))), None)
        if odd is not None:
            raise CompressError(
                f"graph {name!r} of {model.name!r} runs {odd!r} without the batch normalisation that another graph "
                "runs behind it, so it cannot be folded in for both: give the graphs a layer each"
            )
        weights.update(held)
        graphs[name] = dataclasses.replace(graph, program=program)
    return dataclasses.replace(model, graphs=graphs, weights=weights, factory=None, channels={}, module=None)


def _without_writes(model: Model) -> Model:
    """``model`` where nothing is written into a view: a fake quantizer would stand between a tensor and the write."""
    graphs = dict(model.graphs)
    for name, graph in model.graphs.items():
        if any(_writes(node) for node in graph.program.graph.nodes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graphs[name] = dataclasses.replace(graph, program=graph.program.run_decompositions({}))
    return model if graphs == model.graphs else dataclasses.replace(model, graphs=graphs)


def _writes(node: Node) -> bool:
    """Whether what it writes is read by another name than its own."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    written = node.args[0] if node.args else None
    return not node.users or (isinstance(written, Node) and len(written.users) > 1) or _is_view(written)


def _is_view(node: Any) -> bool:
    schema = getattr(getattr(node, "target", None), "_schema", None)
    returns = schema.returns if schema is not None else ()
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def agree(value: Tensor, other: Tensor | None) -> bool:
    """Whether a graph may call ``value`` what another calls ``other``."""
    return other is None or (value.shape == other.shape and torch.equal(value, other))


def _to_fold(module: GraphModule) -> bool:
    return any(_norm_behind_layer(node) or fused(node) or _computed(node) or node.target in PADDED
               or as_linear(module, node) for node in module.graph.nodes)


def _fold_norms(module: GraphModule) -> None:
    """Fold each batch normalisation that can be into the convolution before it, and leave the others as they are.

    An ``alias`` keeps those apart: torchao takes the two for one, here and where fake quantizers are put in.
    """
    kept = [node for node in module.graph.nodes if node.target in _NORMS and not _norm_to_fold(node)]
    for norm in kept:
        source = norm.args[0]
        if isinstance(source, Node) and source.target in WEIGHTED:
            with module.graph.inserting_before(norm):
                between = module.graph.call_function(torch.ops.aten.alias.default, (source,))
            between.meta = dict(source.meta)
            norm.replace_input_with(source, between)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _fuse_conv_bn_(module)
    module.recompile()


def _norm_behind_layer(node: Node) -> bool:
    source = node.args[0] if node.target in _NORMS else None
    return isinstance(source, Node) and source.target in WEIGHTED


def _norm_to_fold(node: Node) -> bool:
    """Whether it has statistics of its own and is all that reads a convolution, which is all that reads its weights.

    Else the convolution is wanted as it is too.
    """
    if node.target not in _NORMS:
        return False
    source = node.args[0]
    if not isinstance(source, Node) or source.target not in WEIGHTED or len(source.users) > 1:
        return False
    if any(value is None for value in node.args[3:5]):
        return False
    weights = {value.target for value in source.args[1:3] if isinstance(value, Node) and value.op == "get_attr"}
    readers = [user for held in source.graph.nodes if held.op == "get_attr" and held.target in weights
               for user in held.users]  # fmt: skip
    return all(reader is source for reader in readers)


def _computed(node: Node) -> list[Node]:
    """The weight and bias of a layer that are not given as such, but computed from weights alone."""
    if node.target not in WEIGHTED:
        return []
    given = [value for value in node.args[1:3] if isinstance(value, Node)]
    return [value for value in given if value.op != "get_attr" and weights_behind(value)]


def _fold_computed(module: GraphModule, taken: Mapping[str, Tensor]) -> None:
    """Put parameters in place of computed weights; ``taken`` are the names that other graphs have given."""
    for node in list(module.graph.nodes):
        for value in _computed(node):
            source = min(weights_behind(value), key=lambda found: str(found.target))
            name = _keep(module, str(source.target), _evaluated(module, value), taken)
            with module.graph.inserting_before(value):
                kept = module.graph.get_attr(name)
            kept.meta = dict(value.meta)
            value.replace_all_uses_with(kept)


def _evaluated(module: GraphModule, node: Node) -> Any:
    if node.op == "get_attr":
        owner, _, attribute = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), attribute).detach()
    arguments = map_arg((node.args, node.kwargs), lambda source: _evaluated(module, source))
    return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]


def _keep(module: GraphModule, source: str, value: Tensor, taken: Mapping[str, Tensor]) -> str:
    """Register ``value`` beside ``source``, under its name and a number, and return the name."""
    owner, _, attribute = source.rpartition(".")
    held = module.get_submodule(owner)
    number = 0
    while hasattr(held, f"{attribute}_{number}") or not agree(value, taken.get(f"{source}_{number}")):
        number += 1
    held.register_parameter(f"{attribute}_{number}", nn.Parameter(value.clone(memory_format=torch.contiguous_format)))
    return f"{source}_{number}"
