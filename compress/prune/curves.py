"""Sensitivity curves of pruning: what each part of a model costs when it alone keeps 75, 50 and 25 % of its widths.

Nothing is removed or exported for this: units are silenced in place, in one network, and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from calibration import CalibrationSet
from compress.errors import CompressError
from compress.evaluate import groups_of, targets_of
from compress.metrics import Metric, Outputs, drop_of, statistics_of, value_of
from compress.model import Model
from compress.program import chain_of, module_path, named_outputs
from compress.prune.check import restored, zero
from compress.prune.forward import Tensors, call, tensors
from compress.prune.structured import Ranked
from compress.quantize.parts import MANY, block_of, told
from compress.quantize.probe import Effect
from compress.quantize.reach import Reach, reaching
from compress.quantize.sensitivity import spread
from compress.steps import graph_feeds
from runtimes.spec import Feed, largest_batch

Kind = Literal["component", "modality", "block", "group"]
KEPT = (0.75, 0.5, 0.25)    # shares of its units that every group of a part keeps
BATCH = 32
KEPT_BYTES = 64_000_000     # of the whole network's outputs that others are compared with


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Every group of the part keeps the share ``kept`` of its units, the most important; all else is whole.

    ``macs`` is the share of the whole model's multiply-accumulates that is left.
    """

    kept: float
    macs: float
    effect: Effect

    def to_json(self) -> dict[str, Any]:
        return {"kept": self.kept, "macs": self.macs, **self.effect.to_json()}


@dataclass(frozen=True, kw_only=True)
class PartCurve:
    """``groups`` are the names of the groups in the part, ``modality`` what reaches it, such as "image + text"."""

    kind: Kind
    name: str
    groups: tuple[str, ...]
    modality: str
    points: tuple[CurvePoint, ...]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "groups": len(self.groups), "modality": self.modality,
                "points": [point.to_json() for point in self.points]}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """``whole`` is the metric's value of the model as it is; None where there is no metric."""

    parts: tuple[PartCurve, ...]
    metric: str | None
    whole: float | None
    samples: int
    data: str

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "whole": self.whole, "samples": self.samples, "data": self.data,
                "parts": [part.to_json() for part in self.parts]}


def measure_curves(
    ranked: Ranked, model: Model, data: CalibrationSet, metric: Metric | None, samples: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> Curves:
    """Silence the least important units of each part alone.

    Args:
        ranked: what can be pruned of the model's module, which is whole again afterwards.
        data: samples, with targets where there is a metric; at most ``samples`` are used, spread over it.
        progress: called with (measurements done, in all, what comes).

    Raises:
        CompressError: if it is not known how the graphs feed each other, the data has no targets for the metric, or
            the metric fails on the whole model.
    """
    probe = _Probe(ranked, model, spread(data, samples), metric)
    parts = list(_parts(ranked, model))
    found = []
    for done, (kind, name, numbers, modality) in enumerate(parts):
        if progress:
            progress(done, len(parts), f"{name} alone pruned")
        points = tuple(_point(ranked, probe, numbers, kept) for kept in KEPT)
        groups = tuple(ranked.groups[number].name for number in numbers)
        found.append(PartCurve(kind=kind, name=name, groups=groups, modality=modality, points=points))
    return Curves(
        parts=tuple(found), metric=None if metric is None else metric.name, samples=len(probe.data),
        whole=None if metric is None or probe.whole is None else value_of(metric, probe.whole).value,
        data=probe.data.digest)


def _point(ranked: Ranked, probe: _Probe, numbers: Sequence[int], kept: float) -> CurvePoint:
    lost = {number: _least(ranked.scores[number], kept) for number in numbers}
    for number, units in lost.items():
        ranked.costs.take(number, units)
    macs = ranked.costs.reached["macs"] / ranked.costs.resources["macs"].total
    for number, units in lost.items():
        ranked.costs.give(number, units)
    removal = {number: (ranked.groups[number], units) for number, units in lost.items() if units}
    with restored(ranked.module, [ranked.groups[number] for number in numbers]):
        zero(ranked.module, removal)
        return CurvePoint(kept=kept, macs=macs, effect=probe.effect())


def _least(scores: np.ndarray, kept: float) -> tuple[int, ...]:
    """The least important units, so that the share ``kept`` of them, and at least one, is left."""
    stays = max(1, round(kept * len(scores)))
    return tuple(sorted(np.argsort(scores, kind="stable")[:len(scores) - stays].tolist()))


def _parts(ranked: Ranked, model: Model) -> Iterator[tuple[Kind, str, list[int], str]]:
    """Parts of each kind, in the order of their first group; a group is where the first layer is that makes it."""
    at = {number: group.producers[0].path if group.producers else group.name
          for number, group in enumerate(ranked.groups) if group.units > 1}
    component = {number: model.component_of(path) for number, path in at.items()}
    reach = reach_of_components(model)
    fine: Kind = "group" if len(at) <= MANY else "block"
    names: Mapping[Kind, Callable[[int], str]] = {
        "component": component.__getitem__,
        "modality": lambda number: told(reach.get(component[number], frozenset())),
        fine: lambda number: ranked.groups[number].name if fine == "group" else block_of(at[number]),
    }
    for kind, name_of in names.items():
        grouped: dict[str, list[int]] = {}
        for number in at:
            grouped.setdefault(name_of(number), []).append(number)
        for name, numbers in grouped.items():
            every: Reach = frozenset().union(*(reach.get(component[number], frozenset()) for number in numbers))
            yield kind, name, numbers, told(every)


def reach_of_components(model: Model) -> dict[str, Reach]:
    """The modalities of the inputs that reach each component."""
    found: dict[str, Reach] = {}
    for graph, nodes in reaching(model).items():
        for node in model.graphs[graph].program.module(check_guards=False).graph.nodes:
            if node.op == "call_function":
                name = model.component_of(module_path(node))
                found[name] = found.get(name, frozenset()) | nodes[node.name]
    return found


class _Probe:
    """What the whole network answers, kept to be compared with; :meth:`effect` asks it as it is now."""

    def __init__(self, ranked: Ranked, model: Model, data: CalibrationSet, metric: Metric | None) -> None:
        self.data, self._metric, self._ranked = data, metric, ranked
        self._chain = chain_of(model, {name: self._runner(name, ranked.calls[name].method) for name in model.graphs})
        self._size = largest_batch(model.inputs, BATCH)
        self._first = data.inputs[0]
        self._targets = None if metric is None else targets_of(data, metric.output)
        self._groups = None if metric is None else groups_of(data)
        self._kept: list[tuple[Tensors, dict[str, torch.Tensor]]] = list(self._feeds(model))
        self.whole = None if metric is None else self._scores(metric)

    def effect(self) -> Effect:
        noise = self._noise()
        if self._metric is None or self.whole is None:
            return Effect(noise=noise)
        try:
            scores = self._scores(self._metric)
        except CompressError as error:
            return Effect(noise=noise, failure=str(error))
        return Effect(noise=noise, drop=drop_of(self._metric, self.whole, scores, self._groups))

    def _runner(self, graph: str, method: str) -> Callable[[Feed], dict[str, np.ndarray]]:
        def run(feed: Feed) -> dict[str, np.ndarray]:
            given = {name: np.array(feed[name]) for name in self._ranked.calls[graph].inputs or feed}
            return {name: value.numpy() for name, value in named_outputs(self._ranked.module, given, method).items()}

        return run

    def _scores(self, metric: Metric) -> np.ndarray:
        assert self._targets is not None

        def batches() -> Iterator[tuple[int, Outputs]]:
            for feed in self.data.batches(self._size):
                yield feed[self._first.name].shape[self._first.batch_axis or 0], self._chain.run(feed)

        try:
            return statistics_of(metric, batches(), self._targets)
        except CompressError as error:
            raise CompressError(f"data set {self.data.name!r}, {error}") from error

    def _feeds(self, model: Model) -> Iterator[tuple[Tensors, dict[str, torch.Tensor]]]:
        """What each graph is given by the whole model, and what it answers; as much as memory is given for."""
        held = 0
        for feed in self.data.batches(self._size):
            given = tensors(graph_feeds(model, feed))
            with torch.no_grad():
                outputs = call(self._ranked.module, self._ranked.calls, given)
            held += sum(value.nbytes for value in outputs.values())
            yield given, outputs
            if held >= KEPT_BYTES:
                return

    def _noise(self) -> float:
        """Power of the difference over power of the whole network's outputs, of the output where it is largest."""
        power: dict[str, tuple[float, float]] = {}
        for given, expected in self._kept:
            with torch.no_grad():
                outputs = call(self._ranked.module, self._ranked.calls, given)
            for name, value in outputs.items():
                if value.is_floating_point():
                    noise, signal = power.get(name, (0.0, 0.0))
                    wanted = expected[name].double()
                    power[name] = (noise + float((value.double() - wanted).square().sum()),
                                   signal + float(wanted.square().sum()))
        return max((noise / signal if signal > 0 else float(noise > 0) * np.inf if noise else 0.0
                    for noise, signal in power.values()), default=0.0)
