"""What an input's steps make of one raw value, and how those of a batch become one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtimes.errors import FeedError
from runtimes.spec import Dim, TensorSpec

Side = Literal["right", "left"]


@dataclass(frozen=True)
class Sample:
    """One sample without its batch axis; ``mask`` is True where it is content and not padding, ``types`` are the
    segments of a text pair, ``placed`` is how many samples of another input a text has a place for."""

    array: np.ndarray
    mask: np.ndarray | None = None
    types: np.ndarray | None = None
    placed: int = 0


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How samples of different sizes are made equal: ``fill`` at the end of every axis, or at its beginning."""

    fill: float = 0
    side: Side = "right"


def stack(arrays: Sequence[np.ndarray], spec: TensorSpec, padding: Padding | None, source: str) -> np.ndarray:
    """The ``arrays`` along the batch axis of ``spec``, in its dtype.

    With a ``padding`` each is padded to the largest of them, and to what ``spec`` has at least.

    Raises:
        FeedError: if the sizes differ and there is no padding, or the numbers do not fit the dtype; names ``source``.
    """
    if spec.batch_axis is None and len(arrays) > 1:
        raise FeedError(f"raw input {source!r} has {len(arrays)} samples, but {spec.name!r} has no batch: give one")
    if padding is not None:
        arrays = _padded(arrays, smallest(spec), padding)
    if len(shapes := sorted({array.shape for array in arrays})) > 1:
        raise FeedError(
            f"raw input {source!r}: samples of one batch have the shapes {shapes[0]} and {shapes[1]} for input "
            f"{spec.name!r}: give them one at a time, or of one size"
        )
    if spec.batch_axis is None:
        return _cast(arrays[0], spec, source)
    if len(arrays) == 1:        # not copied where it lies in order
        return _cast(np.ascontiguousarray(arrays[0][(slice(None),) * spec.batch_axis + (None,)]), spec, source)
    return _cast(np.stack(arrays, spec.batch_axis), spec, source)


def smallest(spec: TensorSpec) -> tuple[int, ...]:
    """The smallest size of each axis of one sample of ``spec``."""
    return tuple(size.min if isinstance(size, Dim) else size for size in sample_shape(spec))


def sample_shape(spec: TensorSpec) -> tuple[int | Dim, ...]:
    return tuple(size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis)


def _padded(arrays: Sequence[np.ndarray], least: tuple[int, ...], padding: Padding) -> list[np.ndarray]:
    if len({array.ndim for array in arrays} | {len(least)}) > 1:
        return list(arrays)     # of a wrong rank: the feed's check says so
    shape = tuple(max(sizes) for sizes in zip(least, *(array.shape for array in arrays), strict=True))
    result = []
    for array in arrays:
        if array.shape != shape:
            filled = np.full(shape, padding.fill, array.dtype)
            right = padding.side == "right"
            filled[tuple(slice(size) if right else slice(-size or None, None) for size in array.shape)] = array
            array = filled
        result.append(array)
    return result


def _cast(array: np.ndarray, spec: TensorSpec, source: str) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return array
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        fits = np.iinfo(dtype).min <= array.min(initial=0) and array.max(initial=0) <= np.iinfo(dtype).max
    else:
        fits = np.can_cast(array.dtype, dtype, "same_kind")
    if not fits:
        raise FeedError(f"raw input {source!r} becomes {array.dtype}, but input {spec.name!r} takes {dtype}")
    if dtype.kind != "f":
        return array.astype(dtype)
    with np.errstate(over="ignore"):    # the feed's check finds the infinity
        return array.astype(dtype)
