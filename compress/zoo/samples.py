"""Samples of a reference model in memory: those of one shape together, as in batches and data sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Rows: TypeAlias = Mapping[str, np.ndarray]
"""Input name -> array with a leading sample axis."""

Parts: TypeAlias = Sequence[tuple[Rows, np.ndarray]]
"""Rows and their targets ``(samples, ...)``; texts or sequences of another length are another part."""

Splits: TypeAlias = Mapping[str, Parts]
"""``train``, ``calibration`` and ``validation`` -> their samples; none is in two."""


def by_shape(samples: Iterable[tuple[Rows, np.ndarray]]) -> Parts:
    """Single samples, without a sample axis, as parts; shapes and the samples of each in the order they came."""
    held: dict[tuple[tuple[int, ...], ...], list[tuple[Rows, np.ndarray]]] = {}
    for row, target in samples:
        held.setdefault(tuple(array.shape for array in row.values()), []).append((row, target))
    return [({name: np.stack([row[name] for row, _ in same]) for name in same[0][0]},
             np.stack([target for _, target in same])) for same in held.values()]  # fmt: skip


def targets_of(parts: Parts) -> np.ndarray:
    """The targets of all samples in order."""
    return np.concatenate([target for _, target in parts])


def blank_of(parts: Parts) -> Rows:
    """What stands for an input that is not to be seen, ``(1, ...)``: its mean, or the first sample of integers."""
    rows, _ = parts[0]
    return {name: array.mean(axis=0, keepdims=True, dtype=array.dtype) if array.dtype.kind == "f" else array[:1]
            for name, array in rows.items()}  # fmt: skip


def alone(rows: Rows, kept: Collection[str], blank: Rows) -> Rows:
    """``rows`` in which only the inputs ``kept`` say anything: the others are those of ``blank``."""
    return {name: array if name in kept else np.repeat(blank[name], len(array), axis=0) for name, array in rows.items()}
