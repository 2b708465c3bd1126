"""``.npz`` files of raw samples along the leading axis, still to be processed: pictures in uint8, texts, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calibration.errors import CalibrationError
from calibration.rows import Row
from calibration.shards import UNREADABLE

FORM = "npz"


def takes(path: Path) -> bool:
    return bool(files(path))


def files(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their names."""
    if path.is_file():
        return [path] if path.suffix == ".npz" else []
    return sorted(file for file in path.glob("*.npz") if file.is_file())


def rows(path: Path) -> Iterator[Row]:
    for file in files(path):
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as npz:
                arrays = {name: np.asarray(npz[name]) for name in npz.files}
        except (*UNREADABLE, AttributeError, TypeError) as error:     # an array without a name is no context manager
            raise CalibrationError(f"{file} is no .npz file that can be read ({error}): write it again") from error
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"{file} has arrays of different lengths ({counts}): give each one row per sample")
        for index in range(max(counts.values(), default=0)):
            values = {name: array[index] if array.ndim > 1 else array[index].item() for name, array in arrays.items()}
            yield Row(where=f"{file}, row {index + 1}", values=values, folder=file.parent)
