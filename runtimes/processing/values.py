"""Inputs that are numbers already, and those derived from another input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.sample import Padding, Sample

MOST_CONSTANTS = 2**20


@dataclass(frozen=True, kw_only=True)
class TensorInput:
    """An array as the model takes it, without its batch axis."""

    KIND: ClassVar[str] = "tensor"
    from_: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.from_,)

    @property
    def padding(self) -> Padding | None:
        return None

    def prepare(self, value: Any, *, mask: bool = False) -> Sample:
        array = numbers(value)
        return Sample(array, mask=np.ones(array.shape[:1], bool) if mask else None)


@dataclass(frozen=True, kw_only=True)
class FeaturesInput:
    """Measured values, channels last: ``(clip(value) - mean) / std``, in float32.

    A sample is an array, a tuple, one number, or, with ``names``, an object with one number for each name. ``mean``,
    ``std``, ``low`` and ``high`` are one number, or one a channel. With ``pad_value``, sequences of one batch are
    padded at their end to the longest.
    """

    KIND: ClassVar[str] = "features"
    from_: str
    names: tuple[str, ...] | None = None
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    pad_value: float | None = None

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.std) > 0):
            raise RuntimesError(f"has the std {self.std}, expected numbers above 0")
        lists = [value for value in (self.names, self.low, self.high, self.mean, self.std) if isinstance(value, tuple)]
        if len({len(value) for value in lists}) > 1:
            raise RuntimesError(f"has lists of {sorted({len(value) for value in lists})} channels, expected one length")
        if self.low is not None and self.high is not None and np.any(np.asarray(self.low) > np.asarray(self.high)):
            raise RuntimesError(f"has low {self.low} above high {self.high}")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.from_,)

    @property
    def padding(self) -> Padding | None:
        return None if self.pad_value is None else Padding(fill=self.pad_value)

    def prepare(self, value: Any, *, mask: bool = False) -> Sample:
        if isinstance(value, Mapping):
            value = self._in_order(value)
        array = np.atleast_1d(numbers(value)).astype(np.float64)
        if not np.isfinite(array).all():
            raise FeedError(f"has a value that is not finite at index {np.argwhere(~np.isfinite(array))[0].tolist()}")
        channels = next((len(v) for v in (self.names, self.low, self.high, self.mean, self.std)
                         if isinstance(v, tuple)), array.shape[-1])
        if array.shape[-1] != channels:
            raise FeedError(f"has {array.shape[-1]} channels, expected {channels}")
        if self.low is not None or self.high is not None:
            array = np.clip(array, self.low, self.high)
        array = ((array - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)
        return Sample(array, mask=np.ones(array.shape[:1], bool) if mask else None)

    def _in_order(self, value: Mapping[str, Any]) -> list[Any]:
        if self.names is None or value.keys() != set(self.names):
            raise FeedError(f"has the names {list(value)[:20]}, expected {list(self.names or ())}")
        return [value[name] for name in self.names]


@dataclass(frozen=True, kw_only=True)
class ConstantInput:
    """The same numbers for every sample (a decoder's first token, a flag), of the sample's shape: nested lists."""

    KIND: ClassVar[str] = "constant"
    value: Any

    def __post_init__(self) -> None:
        array = numbers(self.value)
        if array.size > MOST_CONSTANTS or not np.isfinite(array).all():
            raise RuntimesError("has values that are too many or not finite")

    def array(self) -> np.ndarray:
        return numbers(self.value)


@dataclass(frozen=True, kw_only=True)
class MaskInput:
    """1 where the input ``of`` holds content, 0 where it is padding."""

    KIND: ClassVar[str] = "mask"
    of: str


@dataclass(frozen=True, kw_only=True)
class TypesInput:
    """0 for the tokens of the first text of the input ``of``, 1 for those of its pair."""

    KIND: ClassVar[str] = "token_types"
    of: str


def numbers(value: Any) -> np.ndarray:
    """``value`` as an array of numbers.

    Raises:
        FeedError: if it is something else.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise FeedError(f"is no array of numbers ({error})") from error
    if array.dtype.kind not in "biuf":
        raise FeedError(f"is {type(value).__name__} ({array.dtype}), expected numbers")
    return array
