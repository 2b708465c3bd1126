"""The labels of a data set: one array ``target``, or one for each output of a model with several tasks.

Labels are numbers, or texts in an array of strings: one a sample, or several references along the last axis, ``""``
where a sample has fewer than others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from calibration.errors import CalibrationError

TARGET = "target"
"""The array of labels a shard may hold beside its inputs; ``target.NAME`` holds those of the output ``NAME`` alone."""

Targets: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
"""Labels ``(samples, ...)`` of the only task, or output -> labels."""


def is_target(name: str) -> bool:
    """Whether an array of this name holds labels."""
    return name == TARGET or name.startswith(f"{TARGET}.")


def named(target: Targets) -> dict[str, np.ndarray]:
    """The arrays of a shard that hold ``target``."""
    if isinstance(target, Mapping):
        return {f"{TARGET}.{output}": np.asarray(array) for output, array in target.items()}
    return {TARGET: np.asarray(target)}


def dtype_of(array: np.ndarray) -> str:
    """The dtype's name as manifests and digests have it; strings are ``str``, however long the longest is."""
    return "str" if array.dtype.kind == "U" else array.dtype.name


def joined(parts: Sequence[np.ndarray], shards: Sequence[Path], name: str) -> np.ndarray:
    """The labels ``name`` of all shards; texts with fewer references than others get empty ones.

    Raises:
        CalibrationError: names the first shard whose labels have another shape.
    """
    first = parts[0]
    if first.dtype.kind == "U" and first.ndim == 2:
        most = max(part.shape[-1] for part in parts)
        parts = [_widened(part, most) if part.ndim == 2 else part for part in parts]
    odd = [path for path, part in zip(shards, parts, strict=True) if part.shape[1:] != parts[0].shape[1:]]
    if odd:
        raise CalibrationError(f"{odd[0]}: {name!r} has another shape than in {shards[0]}: labels must have one shape")
    return np.concatenate(parts)


def stacked(labels: Sequence[np.ndarray]) -> np.ndarray:
    """The labels of single samples as one array; texts with fewer references than others get empty ones."""
    if labels[0].dtype.kind == "U" and labels[0].ndim == 1:
        most = max(len(label) for label in labels)
        return np.concatenate([_widened(label[None], most) for label in labels])
    return np.stack(labels)


def _widened(texts: np.ndarray, references: int) -> np.ndarray:
    """``texts`` ``(samples, ...)`` with empty ones up to ``references``."""
    return np.concatenate([texts, np.full((len(texts), references - texts.shape[1]), "", texts.dtype)], axis=1)


def check_texts(array: np.ndarray, where: str) -> None:
    """Refuse strings that are neither one a sample nor references along a second axis, or a sample with none."""
    if array.ndim > 2:
        raise CalibrationError(f"{where} holds texts and has shape {array.shape}: give one text a sample, or several "
                               "references along a second axis")
    if array.ndim == 2 and array.size:
        empty = np.flatnonzero((array == "").all(axis=1))
        if empty.size:
            raise CalibrationError(f"{where} has no reference for sample {empty[0]}: give at least one that is not "
                                   "empty, or one text a sample")


def update(digest: hashlib._Hash, array: np.ndarray) -> None:
    """Add the values of ``array`` to ``digest``; of strings, whatever the width of their array."""
    if array.dtype.kind == "U":
        for text in array.reshape(-1).tolist():
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return
    digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
