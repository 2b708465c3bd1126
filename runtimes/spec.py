"""What goes in and out of a model: feeds, tensor specs with named dynamic dimensions, and the checks on a feed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from runtimes.errors import FeedError, RuntimesError

Feed: TypeAlias = Mapping[str, np.ndarray]
"""Input name -> array. Nothing in this project takes positional inputs."""

Modality = Literal["image", "text", "audio", "video", "sensor", "embedding"]
MODALITIES: tuple[str, ...] = get_args(Modality)


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension: its name and the smallest, usual and largest size it takes.

    ``opt`` is the size an engine is tuned for (TensorRT's optimisation profile; the shape a latency is measured at).
    """

    name: str
    min: int = 1
    opt: int = 1
    max: int = 64

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise RuntimesError(f"dimension name {self.name!r} is not an identifier")
        if not 0 <= self.min <= self.opt <= self.max or self.opt == 0:    # a cache begins with length 0
            raise RuntimesError(
                f"dimension {self.name!r}: sizes must satisfy 0 <= min <= opt <= max and 0 < opt, "
                f"got {self.min}, {self.opt}, {self.max}"
            )


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: ``shape`` mixes fixed sizes and :class:`Dim`; ``dtype`` is numpy's name for it.

    ``values`` are the smallest and the largest value of an integer input that indexes a table. A backend does not check
    them in every kernel: OpenVINO's int8 Gather leaves the answer as an earlier feed had it.
    """

    name: str
    dtype: str
    shape: tuple[int | Dim, ...]
    batch_axis: int | None = 0
    modality: Modality = "sensor"
    values: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.values is not None and (np.dtype(self.dtype).kind not in "iu" or self.values[0] > self.values[1]):
            raise RuntimesError(
                f"tensor {self.name!r}: values {self.values} are not the bounds of a {self.dtype} tensor"
            )
        if self.modality not in MODALITIES:
            raise RuntimesError(
                f"tensor {self.name!r}: unknown modality {self.modality!r}, expected one of {MODALITIES}"
            )

    @property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(size for size in self.shape if isinstance(size, Dim))

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The concrete shape with every dynamic dimension at its ``opt`` size, or at the size given by name."""
        return tuple(sizes.get(s.name, s.opt) if isinstance(s, Dim) else s for s in self.shape)

    def describe(self) -> str:
        sizes = ", ".join(f"{s.name}={s.min}..{s.max}" if isinstance(s, Dim) else str(s) for s in self.shape)
        within = f" within {self.values[0]}..{self.values[1]}" if self.values else ""
        return f"{self.dtype}[{sizes}]{within}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": [
                {"name": s.name, "min": s.min, "opt": s.opt, "max": s.max} if isinstance(s, Dim) else s
                for s in self.shape
            ],
            "batch_axis": self.batch_axis,
            "modality": self.modality,
            **({"values": list(self.values)} if self.values else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        try:
            return cls(
                name=str(data["name"]),
                dtype=_dtype_from_json(data["dtype"]),
                shape=tuple(_size_from_json(size) for size in data["shape"]),
                batch_axis=None if data["batch_axis"] is None else int(data["batch_axis"]),
                modality=data["modality"],
                values=_values_from_json(data.get("values")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RuntimesError(f"not a tensor spec: {data!r} ({error})") from error


def _size_from_json(size: Any) -> int | Dim:
    if isinstance(size, Mapping):
        return Dim(str(size["name"]), int(size["min"]), int(size["opt"]), int(size["max"]))
    if int(size) < 0:
        raise ValueError(f"size {size!r} is negative")
    return int(size)


def _values_from_json(values: Any) -> tuple[int, int] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 2 or any(type(value) is not int for value in values):
        raise ValueError(f"values {values!r} are not a smallest and a largest integer")
    return values[0], values[1]


def _dtype_from_json(name: Any) -> str:
    if not isinstance(name, str) or not name.isalnum():  # numpy reads more into a string than a name
        raise ValueError(f"{name!r} is not a dtype name")
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {name!r} is not a boolean, an integer or a real number")
    return str(dtype.name)


def largest_batch(specs: Iterable[TensorSpec], most: int) -> int:
    """The most samples, up to ``most``, that inputs of these ``specs`` take at once; 1 where none has a batch axis."""
    sizes = [spec.shape[spec.batch_axis] for spec in specs if spec.batch_axis is not None]
    return min([most, *(size.max if isinstance(size, Dim) else size for size in sizes)]) if sizes else 1


def check_feed(specs: Iterable[TensorSpec], feed: Feed, *, source: str = "feed") -> dict[str, np.ndarray]:
    """Return ``feed`` as C-contiguous arrays in the order of ``specs``, or say which input is wrong and how.

    Args:
        specs: the inputs expected; dimensions of one name must agree across inputs.
        feed: input name -> array.
        source: what the message calls the feed (a file name, for a feed read from disk).

    Raises:
        FeedError: on a missing or unknown input, a wrong dtype, rank or size, a value that is NaN or infinite,
            or one outside the table it indexes.
    """
    # Every run of a session comes through here: messages are put together only once something is wrong.
    specs = tuple(specs)
    names = [spec.name for spec in specs]
    if not isinstance(feed, Mapping):
        raise FeedError(f"{source} is a {type(feed).__name__}, expected a mapping with the inputs {names}")
    if feed.keys() != set(names):
        lacking = [name for name in names if name not in feed]
        unknown = [name for name in feed if name not in names]
        problem = f"lacks input {lacking[0]!r}" if lacking else f"has an unknown input {unknown[0]!r}"
        raise FeedError(f"{source} {problem}: expected the inputs {names}, got {list(feed)}")
    sizes: dict[str, tuple[int, str]] = {}
    checked = {}
    for spec in specs:
        try:
            checked[spec.name] = _check_tensor(spec, feed[spec.name], sizes)
        except FeedError as error:
            raise FeedError(f"{source}: input {spec.name!r} {error}") from None
    return checked


def _check_tensor(spec: TensorSpec, value: Any, sizes: dict[str, tuple[int, str]]) -> np.ndarray:
    array = np.asarray(value)
    dtype = array.dtype
    if dtype != np.dtype(spec.dtype):  # one of the other byte order differs too
        raise FeedError(f"has dtype {dtype}, expected {spec.dtype}: convert it with .astype({spec.dtype!r})")
    if array.ndim != len(spec.shape):
        raise FeedError(f"has shape {array.shape}, expected {len(spec.shape)} dimensions: {spec.describe()}")
    for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(expected, int):
            if size != expected:
                raise FeedError(f"has shape {array.shape}, expected size {expected} on axis {axis}: {spec.describe()}")
            continue
        if not expected.min <= size <= expected.max:
            bounds = f"{expected.min}..{expected.max}"
            raise FeedError(f"has shape {array.shape}: {expected.name} is {size}, outside {bounds}")
        first, owner = sizes.setdefault(expected.name, (size, spec.name))
        if size != first:
            raise FeedError(f"has {expected.name}={size}, but input {owner!r} has {expected.name}={first}")
    if dtype.kind == "f" and not np.isfinite(array).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise FeedError(f"has a value that is not finite ({array[bad]}) at index {bad}")
    if spec.values is not None and array.size:
        least, most = spec.values
        smallest, largest = int(array.min()), int(array.max())
        if smallest < least or largest > most:
            beyond = smallest if smallest < least else largest
            raise FeedError(f"has the value {beyond}, outside {least}..{most}: the table it indexes ends there")
    return np.ascontiguousarray(array)
