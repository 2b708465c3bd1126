"""What quantize would leave in float, by its own decision on this model, and why."""

from __future__ import annotations

from collections.abc import Iterator

from compress.complexity import count
from compress.doctor.finding import Finding, Severity
from compress.doctor.patient import Patient, shortened
from compress.doctor.places import Place, of_node
from compress.errors import CompressError

_PRODUCTS = ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm", "einsum")
_FREE = ("embedding",)                           # costs no multiplication


def examine(patient: Patient) -> Iterator[Finding]:
    from compress.quantize.annotate import find_operators
    from compress.quantize.attention import fused
    from compress.quantize.schemes import get_scheme

    schemes = [get_scheme(target.scheme) for target in patient.targets]
    scheme = next((s for s in schemes if s.products is not None), schemes[0] if schemes else None)
    taken_apart = scheme is None or scheme.products is not None     # by quantize, into two products that run in int8
    for graph in () if patient.model is None else patient.model.graphs.values():
        module = graph.program.module(check_guards=False)
        nodes = {node.name: node for node in module.graph.nodes}
        found = find_operators(module, scheme=scheme)
        reasons: dict[tuple[str, str], list[str]] = {}
        for operator in found:
            if operator.float_reason is not None:
                reasons.setdefault((operator.op, operator.float_reason), []).append(operator.node)
        weighted = {operator.node for operator in found}
        for node in module.graph.nodes:
            name = str(node.target).removeprefix("aten.").partition(".")[0]
            if node.op == "call_function" and name in _PRODUCTS and node.name not in weighted and not (
                    taken_apart and fused(node)):
                reasons.setdefault((name, "it multiplies two activations, and only weights are quantized"), []).append(
                    node.name)  # fmt: skip
        macs = _macs(patient, graph)
        for (op, reason), names in reasons.items():
            places = [of_node(nodes[name]) for name in names]
            share = sum(macs.get(name, 0.0) for name in names)
            severity: Severity = "note" if op in _FREE or (macs and share < 0.05) else "costs speed"
            yield Finding(
                examination="stays_float", severity=severity,
                where=shortened(list(dict.fromkeys(place.path or op for place in places))),
                source=_only(places), concerns=("quantize",),
                what=f"{len(names)} {op} stay{'s' if len(names) == 1 else ''} float: {reason}"
                     + (f" ({share:.0%} of the model's MACs)" if share else ""),
                remedy=_remedy(op),
            )  # fmt: skip
        if not any(operator.float_reason is None for operator in found):
            yield Finding(
                examination="stays_float", severity="costs speed", where="the model",
                what="no operator of this model would run in int8", concerns=("quantize",),
                remedy="int8 covers Linear, Conv1d and Conv2d layers; half precision is what is left to gain from",
            )  # fmt: skip


def _remedy(op: str) -> str:
    if op in _FREE:
        return "nothing to do; a smaller vocabulary or width saves its memory"
    if op in ("conv_transpose2d", "conv_transpose1d"):
        return "an interpolation followed by a Conv2d runs in int8"
    if op.startswith(("lstm", "gru", "rnn")):
        return "make it narrower, or use a convolution or attention over the sequence"
    if op in _PRODUCTS:
        return "nothing to do in most models"
    return "write products with weights as nn.Linear or nn.Conv2d"


def _only(places: list[Place]) -> str | None:
    return places[0].source if len(places) == 1 else None


def _macs(patient: Patient, graph: object) -> dict[str, float]:
    """Node -> its share of the graph's MACs; empty where they cannot be counted."""
    assert patient.model is not None
    program = next(g.program for g in patient.model.graphs.values() if g is graph)
    try:
        complexity = count(program, patient.model)
    except CompressError:
        return {}
    total = complexity.total.macs or 1
    return {operation.name: operation.macs / total for operation in complexity.operations}
