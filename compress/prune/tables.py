"""Which tables of embeddings the ids of texts go to, and which layers score those ids: seen in a run of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.distill.forcing import loops_of
from compress.model import Model
from compress.prune.channels import ties
from compress.prune.forward import Calls, Tensors, call


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids below ``size``: the embeddings of them, which may share one table, and the Linear layers that score them."""

    size: int
    tables: tuple[str, ...]                      # module paths
    heads: tuple[str, ...]
    given: tuple[tuple[str, str], ...]           # graphs, and their inputs that hold ids
    tied: bool                                   # a head's weight is the table

    @property
    def name(self) -> str:
        return self.tables[0]


def find_vocabularies(model: Model, module: nn.Module, calls: Calls, feed: Tensors) -> list[Vocabulary]:
    """Every table that is given an input of a graph as it is; ``module``, left as it was, runs once on ``feed``."""
    seen = {name: _seen(module, calls, feed, name) for name in calls}
    paths = {id(layer): path for path, layer in module.named_modules()}
    tied = {id(layer._parameters[name]): [(paths[id(one)], one) for one, _ in held]
            for held in ties(module) for layer, name in held[:1]}
    found: dict[int, Vocabulary] = {}
    for graph, (ids, _, _) in seen.items():
        for path, name in ids:
            weight: Any = module.get_submodule(path)._parameters["weight"]
            before = found.get(id(weight))
            others = tied.get(id(weight), [])
            if any(not isinstance(layer, nn.Embedding | nn.Linear) for _, layer in others):
                continue
            tables = [other for other, layer in others if isinstance(layer, nn.Embedding)] or [path]
            given = {*(() if before is None else before.given), (graph, name)}
            heads = tuple(other for other, layer in others if isinstance(layer, nn.Linear))
            found[id(weight)] = Vocabulary(size=len(weight), tables=tuple(tables), given=tuple(sorted(given)),
                                           heads=heads, tied=bool(heads))
    return [_with_heads(model, one, seen) for one in found.values()]


def _with_heads(model: Model, one: Vocabulary, seen: Mapping[str, Any]) -> Vocabulary:
    """Beside the layers that are tied to the table, those whose outputs are the scores a decoder picks ids by."""
    heads = dict.fromkeys(one.heads)
    for step in loops_of(model).values():
        if step.loop is None or (step.graph, step.loop.token) not in one.given:
            continue
        _, scored, outputs = seen[step.graph]
        names = [spec.name for spec in model.graphs[step.graph].outputs]
        scores = outputs[f"{step.graph}/{names.index(step.loop.logits)}"]
        heads |= dict.fromkeys(path for path, value in scored.items()
                               if value.shape[-1] == one.size == scores.shape[-1]
                               and torch.equal(value.flatten(0, -2)[-1], scores.flatten(0, -2)[-1]))
    return replace(one, heads=tuple(heads))


def _seen(
    module: nn.Module, calls: Calls, feed: Tensors, graph: str,
) -> tuple[list[tuple[str, str]], dict[str, Tensor], dict[str, Tensor]]:
    """Of one graph: tables and the inputs they are given; what each Linear layer gave in the first run; the outputs."""
    ids: list[tuple[str, Tensor]] = []
    scored: dict[str, Tensor] = {}

    def note(path: str, layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if isinstance(layer, nn.Embedding):
            ids.append((path, given[0]))
        elif isinstance(layer, nn.Linear):
            scored.setdefault(path, made)

    with torch.no_grad(), _watched(module, note):
        outputs = call(module, {graph: calls[graph]}, {graph: feed[graph]})
    inputs = {name: [given[name] for given in feed[graph]] for name in feed[graph][0]}
    found = [(path, name) for path, value in ids for name, values in inputs.items()
             if any(value.shape == other.shape and torch.equal(value, other) for other in values)]
    return list(dict.fromkeys(found)), scored, outputs


@contextmanager
def _watched(module: nn.Module, note: Any) -> Iterator[None]:
    def hook(path: str) -> Any:
        return lambda layer, given, made: note(path, layer, given, made)

    hooks = [layer.register_forward_hook(hook(path)) for path, layer in module.named_modules()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
