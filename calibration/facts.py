"""What is known of each sample of a set before any model sees it: which inputs it has, how long it is, its label."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.dataset import CalibrationSet
from calibration.shards import Shard, shard_specs
from calibration.strata import choose
from runtimes.spec import Dim, TensorSpec

MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One entry a sample, in order: some bytes each, whatever the size of the samples.

    ``labels`` are numbers of ``classes``; one class, ``""``, where the set has no labels that are classes. Numbers with
    a fraction, arrays and texts of which most are different are no classes.
    """

    present: Mapping[str, np.ndarray]       # input -> bool: it has a value other than zero
    prints: Mapping[str, np.ndarray]        # input -> uint32: CRC-32 of its shape and values
    sizes: Mapping[str, np.ndarray]         # dynamic dimension -> int64
    lengths: np.ndarray                     # int64: values that are not zero in integer inputs, all of others whose
    labels: np.ndarray                      # int64                                     # size is dynamic
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def choose(self, count: int) -> list[int]:
        """Places of the ``count`` samples that stand for all, as :mod:`calibration.strata` says."""
        kinds = list(zip(*(values.tolist() for values in self.present.values()), strict=True))
        return choose(self.labels.tolist(), count, kinds=kinds, lengths=self.lengths.tolist())


def read_facts(data: CalibrationSet) -> Facts:
    """The facts of every sample of ``data``, one shard in memory at a time."""
    specs = shard_specs(data.inputs)
    columns: dict[tuple[str, str], list[np.ndarray]] = {}
    lengths: list[np.ndarray] = []
    classes = _Classes()
    for shard in data.read():
        found, length = _facts_of(shard, specs)
        for key, values in found.items():
            columns.setdefault(key, []).append(values)
        lengths.append(length)
        classes.add(shard)
    joined: dict[str, dict[str, np.ndarray]] = {"present": {}, "prints": {}, "sizes": {}}
    for (what, name), parts in columns.items():
        joined[what][name] = np.concatenate(parts)
    labels, names = classes.found(len(data))
    return Facts(**joined, lengths=np.concatenate(lengths), labels=labels, classes=names)


def _facts_of(shard: Shard, specs: Sequence[TensorSpec]) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """What and whose -> of each sample; and the lengths."""
    found: dict[tuple[str, str], np.ndarray] = {}
    length = np.zeros(shard.count, np.int64)
    for spec in specs:
        array = shard.feed[spec.name]
        rows = array.reshape(shard.count, -1)
        # A lone number of 0 is a value like any other.
        found["present", spec.name] = np.asarray(rows.any(axis=1)) | (rows.shape[1] == 1)
        found["prints", spec.name] = _prints(array)
        dynamic = [(axis, size) for axis, size in enumerate(spec.shape) if axis and isinstance(size, Dim)]
        for axis, size in dynamic:
            found["sizes", size.name] = np.full(shard.count, array.shape[axis], np.int64)
        if rows.dtype.kind in "iu":
            length += np.count_nonzero(rows, axis=1)
        elif dynamic:
            length += rows.shape[1]
    return found, length


def _prints(array: np.ndarray) -> np.ndarray:
    start = zlib.crc32(str(array.shape[1:]).encode())
    rows = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    return np.array([zlib.crc32(row.data, start) for row in rows], np.uint32)


class _Classes:
    """The labels of all tasks together as numbers, in the order they are met."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._labels: list[np.ndarray] = []

    def add(self, shard: Shard) -> None:
        columns = [target.tolist() for target in shard.targets.values() if target.ndim == 1 and target.dtype.kind in
                   "biuU"]  # fmt: skip
        if not columns or len(self._numbers) > MOST_CLASSES:
            self._labels.append(np.zeros(shard.count, np.int64))
            return
        keys: Sequence[tuple[Any, ...]] = list(zip(*columns, strict=True))
        self._labels.append(np.array([self._numbers.setdefault(key, len(self._numbers)) for key in keys], np.int64))

    def found(self, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
        if not self._numbers or 2 * len(self._numbers) > max(count, 2) or len(self._numbers) > MOST_CLASSES:
            return np.zeros(count, np.int64), ("",)
        return np.concatenate(self._labels), tuple(", ".join(map(str, key)) for key in self._numbers)
