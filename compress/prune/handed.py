"""What graphs hand to each other: a decoder's cache, the keys and values of what an encoder saw.

No caller ever sees these arrays, so that they shrink with the attention heads they hold, at both ends. Which part of
which array a head has is found by changing what its key and value layers give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import nn

from compress.model import Model
from compress.prune.forward import Calls, Tensors, of_any_run
from compress.prune.groups import Group, Share, joined
from compress.prune.tracing import Tracer, TracingError

Lost = Mapping[str, tuple[int, tuple[int, ...]]]
"""An input, or an output as :func:`compress.prune.forward.call` names it -> an axis, and what it loses of that."""


@dataclass(frozen=True, kw_only=True)
class Handed:
    """One array: the ``outputs`` that give it, ``graph/position``, and the names of the ``inputs`` that take it."""

    outputs: frozenset[str]
    inputs: frozenset[str]


def handed_of(model: Model) -> tuple[Handed, ...]:
    """The arrays that no output of the chain of ``model`` is made of; none where it has no chain."""
    if model.chain is None or (wiring := model.wiring) is None:
        return ()
    graph_of = {step.name: step.graph for step in wiring.steps}
    position = {(graph, spec.name): f"{graph}/{number}" for graph, entry in model.graphs.items()
                for number, spec in enumerate(entry.outputs)}
    told = {position.get((graph_of[source.step], source.name)) for source in wiring.sources.values() if source.step}
    pairs = [(position[graph_of[source.step], source.name], name) for step in wiring.steps
             for name, source in step.inputs.items() if source.step is not None]
    pairs += [(position[step.graph, made], name) for step in wiring.steps if step.loop is not None
              for name, made in step.loop.state.items()]
    found: list[tuple[set[str], set[str]]] = []
    for output, name in pairs:
        outputs, inputs = {output}, {name}
        for one in [one for one in found if output in one[0] or name in one[1]]:
            found.remove(one)
            outputs, inputs = outputs | one[0], inputs | one[1]
        found.append((outputs, inputs))
    given = {source.name for step in wiring.steps for name, source in step.inputs.items() if source.step is None}
    return tuple(Handed(outputs=frozenset(outputs), inputs=frozenset(inputs)) for outputs, inputs in found
                 if not outputs & told and not inputs & given)


def share_out(
    module: nn.Module, heads: Sequence[tuple[Group, ...]], calls: Calls, feed: Tensors, handed: Sequence[Handed],
) -> list[tuple[Group, ...]]:
    """The groups ``heads``, alternatives of each, with what their units have of the arrays ``handed``.

    Attention whose keys lie in one array is one group: a unit is a head of each.

    Args:
        module: left as it was.
        calls: the methods to trace, one per graph.
        feed: what each graph is run on; a sample or two are enough.
    """
    if not handed or not heads:
        return list(heads)
    tracer = Tracer(module, calls, feed)
    by_output = {output: array for array in handed for output in array.outputs}
    firsts = [group for group, *_ in heads]
    try:
        found = [_touched(tracer, [(group, range(group.units))], by_output) for group in firsts]
        sets: list[tuple[list[int], set[Handed]]] = []
        for number, touched in enumerate(found):
            numbers, arrays = [number], set(touched)
            for one in [one for one in sets if arrays & one[1]]:
                sets.remove(one)
                numbers, arrays = one[0] + numbers, arrays | one[1]
            sets.append((numbers, arrays))
        sharing = [group for group, touched in zip(firsts, found, strict=True) if touched]
        # what two sets have of the arrays is told apart by the array: one head of each is changed at once
        by_unit = [_touched(tracer, [(group, [unit]) for group in sharing if unit < group.units], by_output)
                   for unit in range(max((group.units for group in sharing), default=0))]
    except TracingError:                         # what cannot be traced the trials refuse
        return list(heads)
    made = list[tuple[Group, ...]]()
    for numbers, arrays in sets:
        made += _joined([heads[number] for number in sorted(numbers)],
                          [{array: axes for array, axes in one.items() if array in arrays} for one in by_unit])
    return made


def _joined(
    heads: Sequence[tuple[Group, ...]], touched: Sequence[Mapping[Handed, Sequence[np.ndarray]]],
) -> Sequence[tuple[Group, ...]]:
    """One group of several, each of them with alternatives, and its share of the arrays; or all as they are.

    ``touched`` says of each unit which arrays it is in, and where.
    """
    firsts = [group for group, *_ in heads]
    units = min(group.units for group in firsts)
    shares = _shares(touched[:units]) if all(group.units == units for group in firsts) else ()
    if not shares:
        return heads                             # where there is an array their trials say what is wrong
    return [tuple(replace(group, shares=shares) for group in joined(heads))]


def _touched(
    tracer: Tracer, units: Iterable[tuple[Group, Iterable[int]]], by_output: Mapping[str, Handed],
) -> dict[Handed, list[np.ndarray]]:
    """The arrays that are others once these units of groups are; of each axis the places that are."""
    changed = {edit.path: np.array(edit.channels(own)) for group, own in units for edit in group.producers}
    found: dict[Handed, list[np.ndarray]] = {}
    for name, differs in tracer.moved(changed):
        array = by_output.get(of_any_run(name))
        if array is None or not differs.any():
            continue
        others = [tuple(other for other in range(differs.ndim) if other != axis) for axis in range(differs.ndim)]
        # of whichever run: heads are at the same places in each
        found[array] = [np.asarray(differs.any(axis=own)) for own in others]
    return found


def _shares(touched: Sequence[Mapping[Handed, Sequence[np.ndarray]]]) -> tuple[Share, ...]:
    """Of each array the one axis on which every unit has places of its own; nothing where there is none, or two."""
    shares = []
    for array in dict.fromkeys(array for one in touched for array in one):
        if any(array not in one for one in touched):
            return ()
        axes = [axis for axis in range(len(touched[0][array]))
                if not any((one[array][axis] & other[array][axis]).any() for one, other in combinations(touched, 2))
                and np.any([one[array][axis] for one in touched], axis=0).all()]
        if len(axes) != 1:
            return ()
        index = tuple(tuple(np.flatnonzero(one[array][axes[0]]).tolist()) for one in touched)
        shares.append(Share(inputs=array.inputs, outputs=array.outputs, axis=axes[0], index=index))
    return tuple(shares)


def lost(removal: Iterable[tuple[Group, Iterable[int]]]) -> Lost:
    """What the arrays lose with these units of groups."""
    return {name: (share.axis, tuple(sorted(place for unit in units for place in share.index[unit])))
            for group, units in removal for share in group.shares for name in (*share.inputs, *share.outputs)}


def given_less(feeds: Tensors, less: Lost) -> Tensors:
    """``feeds`` without what is lost of them."""
    return {graph: [{name: _less(value, less.get(name)) for name, value in feed.items()} for feed in own]
            for graph, own in feeds.items()}


def made_less(outputs: Mapping[str, torch.Tensor], less: Lost) -> dict[str, torch.Tensor]:
    """``outputs`` of :func:`compress.prune.forward.call` without what is lost of them."""
    return {name: _less(value, less.get(of_any_run(name))) for name, value in outputs.items()}


def _less(value: torch.Tensor, gone: tuple[int, tuple[int, ...]] | None) -> torch.Tensor:
    if gone is None:
        return value
    axis, places = gone
    return value.index_select(axis, torch.tensor([i for i in range(value.shape[axis]) if i not in set(places)]))
