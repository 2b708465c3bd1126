"""Which samples of which calibration set each pass over a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration import CalibrationSet
from calibration.facts import Facts, read_facts
from compress.errors import CompressError
from compress.model import Model

CHAIN = ""      # in place of a graph's name: the chain as a whole


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Those at ``places`` of the set ``of``, which stand for all; ``used`` is the set of them alone."""

    of: CalibrationSet
    facts: Facts        # of every sample of the set
    places: Sequence[int]
    used: CalibrationSet

    def __len__(self) -> int:
        return len(self.places)


def samples_of(
    model: Model, data: CalibrationSet | Mapping[str, CalibrationSet], count: int
) -> dict[str, Samples]:  # fmt: skip
    """At most ``count`` samples for the chain of ``model``, or for every graph, of a set that holds all of its inputs.

    Raises:
        CompressError: naming the graph or the input, if a graph has no set, or an input is not in its set.
    """
    if isinstance(data, Mapping):
        sets = {name: _picked(own, count) for name, own in data.items()}
    elif model.chain is not None and {spec.name for spec in model.inputs} <= {spec.name for spec in data.inputs}:
        return {CHAIN: _picked(data, count)}
    else:
        sets = dict.fromkeys(model.graphs, _picked(data, count))
    if sets.keys() != model.graphs.keys():
        raise CompressError(
            f"model {model.name!r} has the graphs {list(model.graphs)}, calibration sets are given for {list(sets)}: "
            "give one set with the inputs of all graphs, or one for each"
        )
    for name, graph in model.graphs.items():
        held = [spec.name for spec in sets[name].used.inputs]
        missing = [spec.name for spec in graph.inputs if spec.name not in held]
        if missing:
            raise CompressError(
                f"graph {name!r} of {model.name!r} takes {missing[0]!r}, which calibration set {sets[name].of.name!r} "
                f"lacks: it holds {held}"
            )
    return sets


def _picked(data: CalibrationSet, count: int) -> Samples:
    facts = read_facts(data)
    places = facts.choose(count)
    return Samples(of=data, facts=facts, places=places, used=data.pick(places))
