"""What an output is: which decides how a student's is compared with its teacher's, and with labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch.fx import Node

from compress.distill.graphs import compared_sources, compared_specs, output_nodes, wiring_of
from compress.metrics import Metric
from compress.model import Model
from runtimes.spec import TensorSpec

Kind = Literal["scores", "shares", "probabilities", "embedding", "numbers"]
"""``scores`` are of classes along the last axis, ``shares`` what a softmax makes of them; ``probabilities`` are what a
sigmoid makes; an ``embedding`` is compared with others; ``numbers`` are all else."""

_FORCED: Mapping[str, Kind] = {"kl": "scores", "mse": "numbers"}
SHARPNESS = 1 / 0.07        # what CLIP begins its training with
SHARPEST = 100.0            # what CLIP limits it to

aten = torch.ops.aten
_SAME = {aten.to.dtype, aten._to_copy.default, aten.contiguous.default, aten.clone.default, aten.alias.default}
_SUMS = {aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.Scalar, aten.sum.dim_IntList}
_SQUARES = {aten.pow.Tensor_Scalar, aten.square.default, aten.mul.Tensor, aten.abs.default}
_MAPS = {       # whose last axis are places, not classes
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
}  # fmt: skip
_FAR = 8                    # nodes between a value and its length


@dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor that is compared: its place among all, what it is, and the kind that it is compared as."""

    index: int
    spec: TensorSpec
    kind: Kind
    compared: Kind


def outputs_of(model: Model, loss: str = "auto", metric: Metric | None = None) -> list[Output]:
    """What is compared of ``model`` and is of real numbers; integers, such as a class that was picked, are not.

    Args:
        loss: ``kl`` compares all as scores, ``mse`` all as numbers, ``auto`` each as its kind.
        metric: what the outputs are judged by; an error of numbers says that they are such.
    """
    found = []
    for index, spec in enumerate(compared_specs(model)):
        if spec.dtype.startswith(("float", "bfloat")):
            kind = _kind(model, spec, metric)
            found.append(Output(index=index, spec=spec, kind=kind, compared=_FORCED.get(loss, kind)))
    return found


def paired(model: Model, outputs: list[Output]) -> list[tuple[Output, Output]]:
    """The embeddings that are compared with each other: those of one width, which different graphs give."""
    sources = compared_sources(wiring_of(model))
    embeddings = [one for one in outputs if one.kind == "embedding" and len(one.spec.shape) == 2]
    return [
        (left, right) for left, right in combinations(embeddings, 2)
        if left.spec.shape[1] == right.spec.shape[1]
        and sources[left.spec.name].step != sources[right.spec.name].step
    ]  # fmt: skip


def sharpness_of(model: Model) -> float:
    """What cosines are multiplied by before a softmax: ``exp`` of a CLIP's or a SigLIP's own ``logit_scale``."""
    named = {name.rpartition(".")[2]: value for name, value in model.weights.items()}
    own = [named["logit_scale"]] if "logit_scale" in named and named["logit_scale"].numel() == 1 else []
    return min(SHARPEST, float(own[0].double().exp())) if own else SHARPNESS


def _kind(model: Model, spec: TensorSpec, metric: Metric | None) -> Kind:
    wiring = wiring_of(model)
    source = compared_sources(wiring)[spec.name]
    step = next(step for step in wiring.steps if step.name == source.step)
    if step.loop is not None:
        return "scores"
    graph = model.graphs[step.graph]
    ends = dict(zip((one.name for one in graph.outputs), output_nodes(graph), strict=True))
    found = _by_end(_behind_casts(ends[source.name]))
    if found is not None:
        return found
    if len(spec.shape) < 2 or spec.shape[-1] == 1:
        return "numbers"
    if spec.name in model.labels:
        return "scores"
    if model.chain is None and len(model.graphs) > 1 and len(spec.shape) == 2:
        return "embedding"
    if metric is not None and metric.name.partition("/")[0] == "mse":
        return "numbers"
    return "scores" if len(spec.shape) < 4 else "numbers"      # maps and pictures


def _by_end(node: Node) -> Kind | None:
    """What the last operator makes; ``None`` where it does not tell."""
    value = node.meta.get("val")
    ndim = value.ndim if isinstance(value, torch.Tensor) else 0
    if node.target in (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default):
        last = node.args[1] in (-1, ndim - 1)
        return (("scores" if "log" in str(node.target) else "shares") if last else "numbers")
    if node.target in _MAPS:
        return "numbers"
    if node.target == aten.sigmoid.default:
        return "probabilities"
    if node.target == aten.div.Tensor and _is_length(node.args[1], node.args[0]):
        return "embedding"
    return None


def _behind_casts(node: Node) -> Node:
    while node.target in _SAME and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _is_length(divisor: Any, divided: Any) -> bool:
    """Whether ``divisor`` is made of a norm of ``divided``."""
    summed = False
    for _ in range(_FAR):
        if divisor is divided:
            return summed
        if not isinstance(divisor, Node) or not divisor.args or (summed and divisor.target not in _SQUARES | _SAME):
            return False
        summed = summed or divisor.target in _SUMS
        divisor = divisor.args[0]
    return False

