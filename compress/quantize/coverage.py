"""What calibration reached: a row for each tensor that was collected, and the samples and layers that need a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.coverage import Finding, coverage_of
from calibration.tensor import TensorStatistics
from compress.model import Model
from compress.quantize.annotate import Operator
from compress.quantize.collect import Collector
from compress.quantize.samples import Samples
from compress.quantize.schemes import Integers, Scheme

FEW_VALUES = 1024       # four for each of 256 levels
OUTLIER = 10.0          # times the largest magnitude of all other samples
CLIPPED = 0.01          # share of the values

Ranges = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A tensor, where it is, and how it is quantized; ``follows`` an input, or comes of weights alone."""

    graph: str
    node: str
    layer: str
    component: str
    kept: TensorStatistics
    range: tuple[float, float]
    clipped: float
    follows: bool

    @property
    def constant(self) -> bool:
        return self.kept.histogram.low == self.kept.histogram.high

    def to_json(self) -> dict[str, Any]:
        histogram = self.kept.histogram
        mean, variance = histogram.moments()
        return {
            "graph": self.graph, "node": self.node, "layer": self.layer, "component": self.component,
            "values": histogram.count, "low": histogram.low, "high": histogram.high, "mean": mean,
            "deviation": variance**0.5, "range": list(self.range), "clipped": self.clipped, "still": self.kept.still,
            "farthest": [list(one) for one in self.kept.farthest],
        }  # fmt: skip


def cover(
    model: Model, collectors: Mapping[str, Collector], operators: Mapping[str, Sequence[Operator]], ranges: Ranges,
    scheme: Scheme, sets: Mapping[str, Samples],
) -> dict[str, Any]:  # fmt: skip
    """The record: ``samples`` of each set, ``components``, ``tensors``, and ``findings``, the gravest first.

    Args:
        model: whose components are told.
        collectors: graph -> what watched it, after :func:`compress.quantize.statistics.gather`.
        operators: graph -> those in int8.
        ranges: graph -> node -> what was chosen.
        scheme: the integers.
        sets: graph, or the chain -> its samples.
    """
    rows = [row for name, collector in collectors.items()
            for row in _rows(model, name, collector, operators[name], ranges[name], scheme)]  # fmt: skip
    samples, about_samples = [], []
    for one in {id(own): own for own in sets.values()}.values():
        record, found = coverage_of(one.facts, one.places, one.used.inputs, one.of.name)
        samples.append(record)
        about_samples += found
    several = max(len(own) for own in sets.values()) > 1
    components, unreached = _components(rows, several)
    seen = [row for row in rows if row.component not in {finding.where for finding in unreached}]
    weights = [one for name, collector in collectors.items() for one in _zero_channels(collector, operators[name])]
    findings = [
        *unreached, *_constant(seen), *_outliers(rows, next(iter(sets.values())).of.name), *about_samples,
        *_few(rows), *_clipping(rows), *weights,
    ]  # fmt: skip
    return {"samples": samples, "components": components, "tensors": [row.to_json() for row in rows],
            "findings": [finding.to_json() for finding in findings]}  # fmt: skip


def _rows(
    model: Model, graph: str, collector: Collector, operators: Sequence[Operator],
    ranges: Mapping[str, tuple[float, float]], scheme: Scheme,
) -> Iterable[_Row]:  # fmt: skip
    integers = {name: found for operator in reversed(operators) for _, name, found in operator.operands(scheme)}
    follow = _following(collector.module)
    for node, kept in collector.statistics.items():
        if node not in integers:    # what a layer gives: what reads it is told of
            continue
        low, high = _ends(integers[node], *ranges[node])
        layer = collector.layers[node]
        yield _Row(
            graph=graph, node=node, layer=layer, component=model.component_of(layer), kept=kept, range=(low, high),
            clipped=kept.histogram.outside(low, high) / kept.histogram.count, follows=node in follow,
        )  # fmt: skip


def _ends(integers: Integers, low: float, high: float) -> tuple[float, float]:
    """A range as the integers have it: with zero in the middle, the farther end counts for both."""
    reach = max(-low, high)
    return (-reach, reach) if integers.symmetric else (low, high)


def _following(module: GraphModule) -> set[str]:
    """The nodes whose values depend on what an input holds, not only on its size."""
    found: set[str] = set()
    for node in module.graph.nodes:
        told = node.target is not torch.ops.aten.sym_size.int and any(n.name in found for n in node.all_input_nodes)
        if told or node.op == "placeholder":
            found.add(node.name)
    return found


def _components(rows: Sequence[_Row], several: bool) -> tuple[dict[str, Any], list[Finding]]:
    """By component: its tensors, those that no sample changes, the fewest values. And which none changes any of."""
    record, findings = {}, []
    for name in dict.fromkeys(row.component for row in rows):
        own = [row for row in rows if row.component == name]
        follows = [row for row in own if row.follows]
        still = [row for row in follows if row.kept.still]
        record[name] = {"tensors": len(own), "still": len(still) if several else 0,
                        "values_least": min(row.kept.histogram.count for row in own)}  # fmt: skip
        if several and follows and len(still) == len(follows):
            layers = _named([row.layer for row in still])
            findings.append(Finding(kind="unreached", where=name, text=(
                f"component {name!r} is not reached: the input of {layers} is the same for every sample: add samples "
                "that differ in what it reads, or keep it in float")))  # fmt: skip
    return record, findings


def _constant(rows: Sequence[_Row]) -> list[Finding]:
    findings = []
    for value, what in ((0.0, "nothing but zeros"), (None, "one value alone")):
        found = [row for row in rows if row.constant and (row.kept.histogram.low == 0.0) == (value == 0.0)]
        if found:
            findings.append(Finding(kind="constant", where=found[0].layer, text=(
                f"the input of {_named([row.layer for row in found])} is {what}: add samples that reach what is "
                "before, or keep it in float; a range of one value clips all others")))  # fmt: skip
    return findings


def _outliers(rows: Sequence[_Row], name: str) -> list[Finding]:
    """Samples, at most three of them, that reach much farther than all others somewhere."""
    found: dict[tuple[int, ...], list[tuple[_Row, float, float]]] = {}
    for row in rows:
        peaks = row.kept.farthest
        for count in range(1, len(peaks)):
            before, behind = peaks[count - 1][1], peaks[count][1]
            if behind > 0 and before > OUTLIER * behind:
                found.setdefault(tuple(sorted(sample for sample, _ in peaks[:count])), []).append((row, before, behind))
                break
    findings = []
    for samples, where in found.items():
        row, reach, others = where[0]
        more = f" and of {len(where) - 1} more" if len(where) > 1 else ""
        along = [row for row, _, others in where if max(-row.range[0], row.range[1]) > OUTLIER * others]
        remedy = (f"leave out what is broken, or use --ranges entropy: the range of {_named([r.layer for r in along])} "
                  "goes along, and leaves all other values few integers" if along else
                  "leave out what is broken; the ranges that were chosen do without it")
        which = f"sample {samples[0]}" if len(samples) == 1 else f"samples {', '.join(map(str, samples))}"
        findings.append(Finding(kind="outlier", where=row.layer, text=(
            f"{which} of {name!r} reach{'es' if len(samples) == 1 else ''} {reach:.4g} in the input of layer "
            f"{row.layer!r}{more}, all others at most {others:.4g}: {remedy}")))  # fmt: skip
    return findings


def _few(rows: Sequence[_Row]) -> list[Finding]:
    few = sorted((row for row in rows if row.kept.histogram.count < FEW_VALUES), key=lambda r: r.kept.histogram.count)
    if not few:
        return []
    return [Finding(kind="few values", where=few[0].layer, text=(
        f"{_named([row.layer for row in few])} saw fewer than {FEW_VALUES:,} values, the first "
        f"{few[0].kept.histogram.count:,}: use more samples"))]  # fmt: skip


def _clipping(rows: Sequence[_Row]) -> list[Finding]:
    most = sorted((row for row in rows if row.clipped > CLIPPED), key=lambda row: -row.clipped)
    if not most:
        return []
    return [Finding(kind="clipped", where=most[0].layer, text=(
        f"more than {CLIPPED:.0%} of the input of {_named([row.layer for row in most])} is clipped, "
        f"{most[0].clipped:.1%} of the first: --ranges percentile or minmax clips less"))]  # fmt: skip


def _zero_channels(collector: Collector, operators: Sequence[Operator]) -> list[Finding]:
    paths = {operator.node: operator.path for operator in operators if not operator.other}
    findings: dict[str, Finding] = {}
    for node in collector.module.graph.nodes:
        weight = node.args[1] if node.name in paths else None
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        owner, _, name = str(weight.target).rpartition(".")
        value = getattr(collector.module.get_submodule(owner), name)
        if not isinstance(value, Tensor) or value.ndim < 2:
            continue
        zero = int((value.detach().flatten(1).abs().amax(1) == 0).sum())
        if zero:
            findings.setdefault(paths[node.name], Finding(kind="zero channels", where=paths[node.name], text=(
                f"{zero} of {len(value)} output channels of layer {paths[node.name]!r} have weights of zeros: they are "
                "exact in int8 and cost what others do; compress prune removes them")))  # fmt: skip
    return list(findings.values())


def _named(layers: Sequence[str], most: int = 3) -> str:
    """Layers in a sentence, the first ones by name."""
    different = list(dict.fromkeys(layers))
    names = ", ".join(map(repr, different[:most]))
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return f"layer{'s' if len(different) > 1 else ''} {names}{more}"
