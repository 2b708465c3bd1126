"""What a model is made of: its inputs and outputs, each component's cost, and what int8 and pruning can do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.complexity import count_model
from compress.errors import CompressError
from compress.model import Model
from runtimes.spec import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``operators``: int8 or float per operator with weights, and why; then what can be pruned, or why not.

    ``graphs`` are what becomes an engine each: inputs and outputs in words, and whether the chain runs it in a loop.
    """

    name: str
    facts: Mapping[str, Any]
    graphs: Mapping[str, Mapping[str, Any]]
    operators: tuple[Mapping[str, Any], ...]
    prunable: Mapping[str, str]
    not_prunable: Mapping[str, str]
    quantization: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "compress.inspection",
            "version": 1,
            **vars(self),
            "operators": [dict(o) for o in self.operators],
        }


def model_facts(model: Model) -> dict[str, Any]:
    """Specs of inputs and outputs, and per component parameters, MACs of one sample in every graph, and bytes."""
    components = {
        name: {"parameters": cost.params, "macs": cost.macs, "size_bytes": cost.size_bytes}
        for name, cost in count_model(model).components.items()
    }
    return {
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "components": components,
    }


def inspect(model: Model, *, factory: str | None = None) -> Inspection:
    """Look at ``model`` without changing or running it on data; ``factory`` as in :func:`compress.prune.prune`."""
    from compress.quantize.annotate import find_operators, operators_of

    quantization = model.quantization
    operators = [
        {
            "graph": name, "path": o.path, "op": o.op, "component": model.component_of(o.path),
            "precision": o.precision, "reason": o.float_reason,
        }
        for name, graph in model.graphs.items()
        for module in [graph.program.module(check_guards=False)]
        for o in (find_operators(module) if quantization is None else operators_of(module, quantization))
    ]  # fmt: skip
    prunable, not_prunable = _pruning(model, factory)
    told = None
    if quantization is not None:
        tensors = sum(len(ranges) for ranges in quantization.ranges.values())
        told = {"scheme": quantization.scheme, "tensors": tensors, **quantization.settings}
    return Inspection(
        name=model.name, facts=model_facts(model), graphs=_graphs(model), operators=tuple(operators), prunable=prunable,
        not_prunable=not_prunable, quantization=told,
    )  # fmt: skip


def _graphs(model: Model) -> dict[str, dict[str, Any]]:
    wiring = model.wiring
    loops = {step.graph for step in wiring.steps if step.loop is not None} if wiring is not None else set()
    return {
        name: {
            "inputs": {spec.name: spec.describe() for spec in graph.inputs},
            "outputs": {spec.name: spec.describe() for spec in graph.outputs}, "loops": name in loops,
        }
        for name, graph in model.graphs.items()
    }  # fmt: skip


def _pruning(model: Model, factory: str | None) -> tuple[dict[str, str], dict[str, str]]:
    from compress.prune import prunable
    from compress.prune.config import UNITS

    if model.quantization is not None:
        return {}, {"": "the model is quantized: prune the float model it was made from"}
    try:
        groups, skipped = prunable(model, factory=factory)
    except CompressError as error:
        return {}, {"": str(error)}
    return {group.name: f"{group.before} {UNITS[group.kind]}" for group in groups}, skipped


def table(found: Inspection) -> Any:
    """The inspection for a terminal."""
    from rich.console import Group
    from rich.table import Table

    facts = found.facts
    inputs = Table("input", "modality", "dtype", "shape", title=f"{found.name}")
    for spec in map(TensorSpec.from_json, facts["inputs"]):
        inputs.add_row(spec.name, spec.modality, spec.dtype, spec.describe().removeprefix(spec.dtype))
    graphs = Table("graph", "takes", "gives", "runs")
    for name, graph in found.graphs.items():
        sides = [[f"{key} {told}" for key, told in graph[side].items()] for side in ("inputs", "outputs")]
        takes, gives = map("\n".join, sides)
        graphs.add_row(name, takes, gives, "once a token" if graph["loops"] else "once")
    components = Table("component", "parameters", "MACs", "size MB", "int8", "float")
    for name, cost in facts["components"].items():
        own = [o for o in found.operators if o["component"] == name]
        int8 = sum(o["precision"] != "float" for o in own)
        components.add_row(name, f"{cost['parameters']:,}", f"{cost['macs']:,}", f"{cost['size_bytes'] / 1e6:.2f}",
                           str(int8), str(len(own) - int8))  # fmt: skip
    stays = Table("stays float", "operator", "why")
    for operator in found.operators:
        if operator["reason"]:
            stays.add_row(operator["path"], operator["op"], operator["reason"])
    pruned = Table("module", "can be pruned", "why not")
    for path, what in found.prunable.items():
        pruned.add_row(path, what, "")
    for path, reason in found.not_prunable.items():
        pruned.add_row(path or "the model", "", reason)
    several = [graphs] if len(found.graphs) > 1 else []
    parts: list[Any] = [inputs, *several, components, *([stays] if stays.row_count else []), pruned]
    if found.quantization is not None:
        parts.insert(0, "quantized: " + ", ".join(f"{key} {value}" for key, value in found.quantization.items()))
    return Group(*parts)
