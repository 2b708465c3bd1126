"""Weights and the largest sum of live activations on the example, against each target's memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from compress.doctor.finding import Finding, size_of
from compress.doctor.patient import Patient
from compress.doctor.watching import Seen

_HALF = 0.5                                      # of the memory: a system and other programs need the rest


def examine(patient: Patient) -> Iterator[Finding]:
    weights, int8 = weight_bytes(patient)
    activations = peak_bytes(patient.seen)
    for target in patient.targets:
        memory = None if target.memory_gib is None else target.memory_gib << 30
        if memory is None and target.reach == "local":
            memory = _memory_here()
        if memory is None or weights + activations <= _HALF * memory:
            continue
        fits = int8 + activations <= _HALF * memory
        in_fp32 = f"weights {size_of(weights)}, activations {size_of(activations)} on the example"
        yield Finding(
            examination="memory", severity="costs speed" if fits else "blocks", where="the model",
            what=f"in fp32 it needs about {size_of(weights + activations)} ({in_fp32}), in int8 "
                 f"{size_of(int8 + activations)}; {target.name} has {size_of(memory)}",
            concerns=("bench", target.name),
            remedy="quantize: the int8 engine fits, the fp32 control does not" if fits else
            "prune it, save its parts as graphs of their own, or take a smaller batch and length",
        )  # fmt: skip


def _memory_here() -> int | None:
    """This machine's memory, where its system says how much it has."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not hasattr(os, "sysconf") or any(name not in os.sysconf_names for name in names):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def weight_bytes(patient: Patient) -> tuple[int, int]:
    """The size of the weights as they are, and with one byte for each that quantize can take."""
    from compress.quantize.annotate import find_operators

    tensors = {id(tensor): tensor for tensor in patient.weights.values()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if patient.model is None:
        return total, total
    saved = 0
    counted: set[str] = set()
    for graph in patient.model.graphs.values():
        for operator in find_operators(graph.program.module(check_guards=False)):
            name = f"{operator.path}.weight"
            if operator.float_reason is None and name in patient.weights and name not in counted:
                counted.add(name)
                saved += patient.weights[name].numel() * (patient.weights[name].element_size() - 1)
    return total, total - saved


def peak_bytes(seen: tuple[Seen, ...]) -> int:
    """The most bytes that are alive at once when each value is freed after its last reader."""
    return max((sum(s.size_bytes for s in seen if s.index <= now.index <= s.last_read) for now in seen), default=0)

