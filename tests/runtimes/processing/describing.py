"""A bundle of nothing but specs and a processing section, for tests of what is done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from runtimes.processing import Processor, parse_processing
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)


def spec(name: str, dtype: str, *shape: int | Dim, batch: bool = True) -> TensorSpec:
    whole = (BATCH, *shape) if batch else shape
    return TensorSpec(name=name, dtype=dtype, shape=whole, batch_axis=0 if batch else None)


def processor(
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    *,
    takes: Sequence[TensorSpec] = (),
    gives: Sequence[TensorSpec] = (),
    files: Mapping[str, bytes] | None = None,
) -> Processor:
    """The processor of a model of one graph that ``takes`` and ``gives`` these tensors."""
    section = parse_processing({"inputs": dict(inputs or {}), "outputs": dict(outputs or {})}, "test")
    held = {f"processing/{name}": data for name, data in (files or {}).items()}
    graphs = {"main": SimpleNamespace(inputs=tuple(takes), outputs=tuple(gives))}
    return Processor(SimpleNamespace(processing=section, graphs=graphs, chain=None, read_file=held.__getitem__))
