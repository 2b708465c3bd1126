"""Fewer rows of an embedding's table, and fewer outputs of the layer that scores them, under ids that stay the same.

An id keeps its number, so that texts, data sets, prompts and comparisons in the network's own code still mean what they
did: the table looks up which row an id has now, and the layer that scores ids puts the scores where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.prune.channels import refresh, tie, ties

ROWS, PLACES = "rows", "places"     # buffers: id -> its row of the table; id -> its place among the scores
BELOW = 1.0                         # how far the score of an id that is gone is below the least of the others


def keep_rows(
    module: nn.Module, tables: Sequence[str], heads: Sequence[str], kept: Sequence[int], stand_in: int | None,
) -> None:
    """Leave only the rows ``kept`` to ``tables`` and ``heads``, in place; weights that were tied stay so.

    Args:
        tables: paths of embeddings of the same ids.
        heads: paths of Linear layers that score them.
        kept: the ids whose rows stay, in order.
        stand_in: the id whose row those that are gone get; without one they share a new row, the mean of theirs.
    """
    tied = ties(module)
    shared = {id(module.get_submodule(path)._parameters["weight"]) for path in tables}
    for path in (*tables, *heads):
        layer = module.get_submodule(path)
        weight: Any = layer._parameters["weight"]
        count, index = len(weight), torch.tensor(kept, device=weight.device)
        lost = torch.ones(count, dtype=torch.bool, device=weight.device)
        lost[index] = False
        small = weight.detach()[index]
        if stand_in is None and id(weight) in shared and lost.any():
            small = torch.cat([small, weight.detach()[lost].mean(0, keepdim=True)])
        if path in tables:
            other = len(kept) if stand_in is None else list(kept).index(stand_in)
            layer.register_buffer(ROWS, _numbered(count, index, other))
        else:       # behind the scores is what those that are gone get
            layer.register_buffer(PLACES, _numbered(count, index, len(small)))
            if (bias := layer._parameters.get("bias")) is not None:
                less = torch.cat([bias.detach()[index], bias.new_zeros(len(small) - len(kept))])
                layer._parameters["bias"] = nn.Parameter(less, requires_grad=bias.requires_grad)
        layer._parameters["weight"] = nn.Parameter(small, requires_grad=weight.requires_grad)
        refresh(layer)
    tie(tied)
    look_up(module, tables, heads)


def _numbered(count: int, kept: Tensor, other: int) -> Tensor:
    """Of each of ``count`` ids its place among ``kept``, or ``other``."""
    found = torch.full((count,), other, device=kept.device)
    found[kept] = torch.arange(len(kept), device=kept.device)
    return found


def apply_rows(module: nn.Module, record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Make a factory's fresh ``module`` look its rows up as ``record`` says, of a channel map; shapes are not changed.

    Raises:
        CompressError: if the record names something that is no embedding, or no Linear layer, of the module.
    """
    modules = dict(module.named_modules())
    for kind, expected, name in (("tables", nn.Embedding, ROWS), ("heads", nn.Linear, PLACES)):
        for path in record.get(kind, ()):
            held = weights.get(f"{path}.{name}")
            if not isinstance(modules.get(path), expected) or held is None or held.dtype is not torch.int64:
                raise CompressError(f"the channel map names {path!r} among its {kind}, which is no {expected.__name__} "
                                    "of the factory's module, or the model lacks its map of ids")
            modules[path].register_buffer(name, held.detach().clone())
    look_up(module, record.get("tables", ()), record.get("heads", ()))


def look_up(module: nn.Module, tables: Sequence[str], heads: Sequence[str]) -> None:
    """Let layers that have lost rows take, or score, the ids of before."""
    for path in tables:
        layer: Any = module.get_submodule(path)
        layer.register_forward_pre_hook(_to_rows)
        if layer.padding_idx is not None:
            layer.padding_idx = int(layer.rows[layer.padding_idx])
    for path in heads:
        module.get_submodule(path).register_forward_hook(_to_places)


def _to_rows(layer: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.rows[given[0]], *given[1:])


def _to_places(layer: Any, given: tuple[Tensor, ...], scores: Tensor) -> Tensor:
    """Scores of all ids: of one that is gone less than of any other, and no constant, which would be far from all."""
    least = scores.amin(-1, keepdim=True) - BELOW
    return torch.cat([scores, least], -1).index_select(-1, layer.places)

