"""Samples of a reference model in memory: those of one shape together, as in batches and data sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from calibration.targets import Targets

Rows: TypeAlias = Mapping[str, np.ndarray]
"""Input name -> array with a leading sample axis."""

Parts: TypeAlias = Sequence[tuple[Rows, Targets]]
"""Rows and their targets ``(samples, ...)``, or output -> targets; sequences of another length are another part."""

Splits: TypeAlias = Mapping[str, Parts]
"""``train``, ``calibration`` and ``validation`` -> their samples; none is in two."""


def by_shape(samples: Iterable[tuple[Rows, Targets]]) -> Parts:
    """Single samples, without a sample axis, as parts; shapes and the samples of each in the order they came."""
    held: dict[tuple[tuple[int, ...], ...], list[tuple[Rows, Targets]]] = {}
    for row, target in samples:
        held.setdefault(tuple(array.shape for array in row.values()), []).append((row, target))
    return [({name: np.stack([row[name] for row, _ in same]) for name in same[0][0]},
             _joined([target for _, target in same], np.stack)) for same in held.values()]  # fmt: skip


def targets_of(parts: Parts) -> Targets:
    """The targets of all samples in order."""
    return _joined([target for _, target in parts], np.concatenate)


def count_of(targets: Targets) -> int:
    """How many samples these are the targets of."""
    return len(next(iter(targets.values())) if isinstance(targets, Mapping) else targets)


def _joined(targets: Sequence[Targets], join: Callable[[list[np.ndarray]], np.ndarray]) -> Targets:
    named = [target for target in targets if isinstance(target, Mapping)]
    if named:
        return {output: join([target[output] for target in named]) for output in named[0]}
    return join([target for target in targets if not isinstance(target, Mapping)])


def blank_of(parts: Parts) -> Rows:
    """What stands for an input that is not to be seen, ``(1, ...)``: its mean, or the first sample of integers."""
    rows, _ = parts[0]
    return {name: array.mean(axis=0, keepdims=True, dtype=array.dtype) if array.dtype.kind == "f" else array[:1]
            for name, array in rows.items()}  # fmt: skip


def alone(rows: Rows, kept: Collection[str], blank: Rows) -> Rows:
    """``rows`` in which only the inputs ``kept`` say anything: the others are those of ``blank``."""
    return {name: array if name in kept else np.repeat(blank[name], len(array), axis=0) for name, array in rows.items()}
