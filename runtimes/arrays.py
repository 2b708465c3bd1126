"""Arrays in an ``.npz`` file: read without pickle, written with the same bytes every time."""

from __future__ import annotations

import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from runtimes.errors import RuntimesError


def parse_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of the ``.npz`` file whose bytes these are; ``where`` names it.

    Raises:
        RuntimesError: if it is not an ``.npz`` file, or an array in it is damaged or holds Python objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (ValueError, EOFError, KeyError, OSError, TypeError, AttributeError, NotImplementedError, RuntimeError,
            SyntaxError, MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise RuntimesError(f"{where} is not an .npz file of plain arrays ({error}): write it again") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the ``.npz`` file at ``path``; raises as :func:`parse_arrays` does."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimesError(f"{path} cannot be read ({error.strerror}): name an .npz file") from error
    return parse_arrays(data, str(path))


def write_batches(path: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write the arrays of batches, with a leading sample axis, as one ``.npz`` file that :func:`read_batches` reads.

    Neighbours that differ in nothing but the number of samples are joined; ``NUMBER/NAME`` is an array of a batch.
    """
    joined: list[dict[str, list[np.ndarray]]] = []
    for batch in batches:
        if joined and {name: _layout(values[-1]) for name, values in joined[-1].items()} == {
            name: _layout(value) for name, value in batch.items()
        }:
            for name, value in batch.items():
                joined[-1][name].append(value)
        else:
            joined.append({name: [value] for name, value in batch.items()})
    write_arrays(path, {f"{index}/{name}": np.concatenate(values) if values[0].ndim else values[0]
                        for index, batch in enumerate(joined) for name, values in batch.items()})


def read_batches(path: Path) -> list[dict[str, np.ndarray]]:
    """The batches that :func:`write_batches` wrote, in order; raises as :func:`parse_arrays` does."""
    batches: dict[int, dict[str, np.ndarray]] = {}
    for key, array in read_arrays(path).items():
        index, slash, name = key.partition("/")
        if not slash or not index.isdecimal():
            raise RuntimesError(f"{path} holds the array {key!r}, which is of no batch: write it again")
        batches.setdefault(int(index), {})[name] = array
    return [batches[index] for index in sorted(batches)]


def _layout(array: np.ndarray) -> tuple[str, tuple[int, ...] | None]:
    return array.dtype.str, array.shape[1:] if array.ndim else None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays`` as an ``.npz`` file; it appears under its name only when it is complete.

    Unlike ``np.savez`` it takes any name ("file" too), and no time of writing is in the bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
