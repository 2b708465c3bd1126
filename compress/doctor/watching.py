"""Every value inside a program while it runs on samples: how large, how far its outliers stand out, how many bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Interpreter, Node

from compress.doctor.places import Place, of_node
from compress.model import ProgramGraph
from compress.program import told_as
from runtimes.spec import Feed

MASK = 1e30                                      # what an attention mask adds is larger: float32's lowest, or -inf
PERCENTILE = 99.99
_MOST = 4_000_000                                # values of one tensor that its percentile is read from


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One node's float result over all samples; magnitudes leave out masks and what is not finite."""

    node: str
    op: str                                      # "aten.linear.default"
    place: Place
    largest: float
    typical: float                               # the PERCENTILE of its magnitudes, itself one of them
    nan: bool
    infinite: bool
    values: int
    size_bytes: int
    last_read: int                               # index of the last node that reads it
    index: int


def watch(graph: ProgramGraph, samples: Sequence[Feed]) -> list[Seen]:
    """Run ``graph`` on every sample; the nodes are those of ``graph.program.module(check_guards=False)``.

    Raises:
        CompressError: if the program fails on a sample.
    """
    module = graph.program.module(check_guards=False)
    nodes = list(module.graph.nodes)
    index = {node: i for i, node in enumerate(nodes)}
    found: dict[Node, Seen] = {}

    class Watcher(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.op in ("placeholder", "call_function") and isinstance(result, torch.Tensor):
                last = max((index[user] for user in n.users), default=index[n])
                found[n] = _merge(found.get(n), _measure(n, result, index[n], last))
            return result

    for sample in samples:
        values = [torch.from_numpy(np.ascontiguousarray(sample[spec.name])) for spec in graph.inputs]
        with torch.no_grad(), told_as("the model fails on a sample"):
            Watcher(module, garbage_collect_values=True).run(*values, enable_io_processing=False)
    return list(found.values())


def _measure(node: Node, value: torch.Tensor, index: int, last: int) -> Seen:
    size = value.numel() * value.element_size()
    largest = typical = 0.0
    nan = infinite = False
    if value.is_floating_point() and value.numel():
        flat = value.detach().float().abs().flatten()
        nan, infinite = bool(flat.isnan().any()), bool(flat.isinf().any())
        if nan or infinite or bool((flat > MASK).any()):
            flat = flat[flat <= MASK]
        if flat.numel():
            largest = float(flat.max())
            sampled = flat[:: max(1, flat.numel() // _MOST)]
            rank = min(int(np.ceil(PERCENTILE / 100 * sampled.numel())), sampled.numel() - 1)
            typical = float(sampled.kthvalue(max(1, rank)).values)
    return Seen(
        node=node.name, op=str(node.target), place=of_node(node), largest=largest, typical=typical, nan=nan,
        infinite=infinite, values=value.numel(), size_bytes=size, last_read=last, index=index,
    )  # fmt: skip


def _merge(before: Seen | None, now: Seen) -> Seen:
    if before is None:
        return now
    return dataclasses.replace(
        now, largest=max(before.largest, now.largest), typical=max(before.typical, now.typical),
        nan=before.nan or now.nan, infinite=before.infinite or now.infinite, values=max(before.values, now.values),
        size_bytes=max(before.size_bytes, now.size_bytes),
    )  # fmt: skip
