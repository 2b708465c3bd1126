"""Reading one shard: an ``.npz`` file with one array per input, samples along the leading axis."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from calibration.errors import CalibrationError
from calibration.targets import TARGET, check_texts, is_target
from runtimes.errors import FeedError
from runtimes.spec import Dim, TensorSpec, check_feed

_COUNT = "samples"
UNREADABLE = (  # what numpy, zipfile and zlib raise on a damaged, encrypted or pickled file
    ValueError, KeyError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The samples of one file: arrays of shape ``(samples, ...)``, in the order of the specs, and their labels."""

    feed: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)     # by the names of their arrays

    @property
    def count(self) -> int:
        return len(next(iter(self.feed.values())))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.feed, **self.targets}


def shard_specs(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of a shard's arrays: the batch axis first, and of any size."""
    taken = {dim.name for spec in inputs for dim in spec.dims}
    count = Dim(_COUNT if _COUNT not in taken else f"{_COUNT}_in_file", 1, 1, 1 << 48)
    specs = []
    for spec in inputs:
        if spec.batch_axis is None:
            raise CalibrationError(
                f"input {spec.name!r} has no batch axis, so its samples cannot be stacked in a calibration set: "
                "give it one, or make it a constant of the model")
        if is_target(spec.name):
            raise CalibrationError(f"an input is called {spec.name!r}, the name of labels in a data set: rename it")
        rest = spec.shape[:spec.batch_axis] + spec.shape[spec.batch_axis + 1:]
        specs.append(replace(spec, shape=(count, *rest), batch_axis=0))
    if not specs:
        raise CalibrationError("the model has no inputs: there is nothing a calibration set could hold")
    return tuple(specs)


def read_shard(path: Path, specs: Sequence[TensorSpec]) -> Shard:
    """Read and check one ``.npz`` file; ``specs`` come from :func:`shard_specs`.

    Raises:
        CalibrationError: naming the file and the input, if the file cannot be read or does not match the specs.
    """
    arrays: dict[str, np.ndarray] = {}
    name = None
    try:
        with path.open("rb") as file, _as_npz(file) as npz:
            for name in npz.files:
                arrays[name] = npz[name]
    except UNREADABLE as error:
        raise _unreadable(path, name, error) from error
    return check_shard(arrays, specs, source=str(path))


def read_target(path: Path, name: str = TARGET) -> np.ndarray:
    """The labels ``name`` of a shard alone; its other arrays stay on disk."""
    try:
        with path.open("rb") as file, _as_npz(file) as npz:
            return np.asarray(npz[name])
    except UNREADABLE as error:
        raise _unreadable(path, name, error) from error


def check_shard(arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], *, source: str) -> Shard:
    """Check arrays with a leading sample axis against ``specs``; ``source`` is what messages call them."""
    arrays = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}
    targets = {name: arrays.pop(name) for name in list(arrays) if is_target(name)}
    for name, array in arrays.items():
        if array.ndim and len(array) == 0:
            raise CalibrationError(f"{source}: input {name!r} holds no samples: remove the file, or write it again")
    try:
        feed = check_feed(specs, arrays, source=source)
    except FeedError as error:
        raise CalibrationError(f"{error}. Correct the calibration data, or the model's input specs") from error
    count = len(feed[specs[0].name])
    for name, target in targets.items():
        if target.ndim == 0 or len(target) != count:
            raise CalibrationError(
                f"{source}: {name!r} has shape {target.shape}, but the inputs hold {count} samples: "
                "give one label per sample along the leading axis")
        check_values(target, f"{source}: {name!r}", texts=True)
    return Shard(feed=feed, targets={name: np.ascontiguousarray(target) for name, target in targets.items()})


def check_values(array: np.ndarray, where: str, *, texts: bool = False) -> None:
    """Refuse anything but finite numbers and, for labels, ``texts``; ``where`` names the file and the array."""
    if texts and array.dtype.kind == "U":
        check_texts(array, where)
        return
    if array.dtype.kind not in "biuf":
        raise CalibrationError(f"{where} has dtype {array.dtype}: store booleans, integers or floats"
                               f"{', or texts as an array of strings' if texts else ''}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise CalibrationError(
            f"{where} has a value that is not finite ({array[bad]}) at index {bad}: remove that sample")


def _as_npz(file: BinaryIO) -> Any:  # an open file: np.load leaks the one it opens when its contents are damaged
    npz = np.load(file, allow_pickle=False)
    if not isinstance(npz, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array without a name")
    return npz


def _unreadable(path: Path, name: str | None, error: Exception) -> CalibrationError:
    if isinstance(error, FileNotFoundError):
        return CalibrationError(f"{path} does not exist: it was listed as a shard of the calibration set")
    where = f"{path}: array {name!r}" if name is not None else str(path)
    if "allow_pickle" in str(error) or "pickled" in str(error):
        return CalibrationError(
            f"{where} holds Python objects, which are never unpickled: store a plain array of numbers")
    reason = " ".join(str(error).split()) or type(error).__name__
    return CalibrationError(f"{where} cannot be read, it is damaged or no .npz file ({reason}): write it again")
