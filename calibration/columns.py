"""From a row's columns to the raw inputs of a model: which column is which, and the values its processing takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.rows import Row

TARGET = "target"
LABELS = ("label", TARGET)
RATE = "sampling_rate"      # in Hz, of sounds that are plain arrays
_USUAL = {
    "image": ("image", "file", "file_name", "path", "img", "picture"),
    "audio": ("audio", "file", "file_name", "path", "sound", "speech"),
    "text": ("text", "caption", "transcript", "transcription", "sentence", "question"),
}
"""Kind -> columns that the only raw input of this kind is looked for in, after the one of its own name."""


@dataclass(frozen=True, kw_only=True)
class RawInput:
    """What a model's processing takes: ``kind`` is image, text, audio, features or tensor; ``names`` are those of the
    numbers that features are made of, where they have names."""

    name: str
    kind: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Raw input -> its column, or ``None`` for features whose numbers have columns of their own."""

    inputs: Mapping[str, str | None]
    target: str | None


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``("image=photo",)`` as ``{"image": "photo"}``."""
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not name or name in given:
            raise CalibrationError(f"the column {pair!r} is not NAME=COLUMN, each name at most once: write image=photo "
                                   "for the raw input 'image' that is in the column 'photo'")
        given[name] = column
    return given


def choose_columns(inputs: Sequence[RawInput], row: Row, given: Mapping[str, str]) -> Columns:
    """The column of each raw input and of the labels, after the first row.

    Raises:
        CalibrationError: names the raw input that has none, and the columns there are.
    """
    there = list(row.values)
    unknown = sorted(given.keys() - {TARGET, *(raw.name for raw in inputs)})
    if unknown:
        raise CalibrationError(f"a column is given for {unknown[0]!r}, but the raw inputs of the model are "
                               f"{[raw.name for raw in inputs]}")
    lost = sorted(column for column in given.values() if column and column not in there)
    if lost:
        raise CalibrationError(f"{row.where} has no column {lost[0]!r}: there are {there}")
    chosen = {raw.name: _column_of(raw, inputs, row, given) for raw in inputs}
    if TARGET in given:
        return Columns(inputs=chosen, target=given[TARGET] or None)
    labels = [column for column in LABELS if column in there and column not in chosen.values()]
    if len(labels) > 1:
        raise CalibrationError(f"{row.where} has the columns {labels[0]!r} and {labels[1]!r}: say which holds the "
                               f"labels, with target={labels[0]}")
    return Columns(inputs=chosen, target=labels[0] if labels else None)


def _column_of(raw: RawInput, inputs: Sequence[RawInput], row: Row, given: Mapping[str, str]) -> str | None:
    if given.get(raw.name):
        return given[raw.name]
    if raw.name in row.values:
        return raw.name
    if raw.names and set(raw.names) <= row.values.keys():
        return None
    only = [other.name for other in inputs if other.kind == raw.kind] == [raw.name]
    for column in _USUAL.get(raw.kind, ()) if only else ():
        if column in row.values and column not in given.values():
            return column
    raise CalibrationError(f"{row.where} has no column for the raw input {raw.name!r} ({raw.kind}): there are "
                           f"{list(row.values)}; name one, with {raw.name}=COLUMN")


def raw_value(raw: RawInput, row: Row, column: str | None) -> Any:
    """What the processing takes for ``raw``.

    Raises:
        CalibrationError: what is wrong with the value; the caller says in which row.
    """
    if column is None:
        return {name: _number(_cell(row, name), name) for name in raw.names}
    value = _cell(row, column)
    if raw.kind == "text":
        if not isinstance(value, str):
            raise CalibrationError(f"has a {type(value).__name__} in the column {column!r}, expected a text")
        if not value.strip():
            raise CalibrationError(f"has an empty text in the column {column!r}")
        return value
    if raw.kind in ("image", "audio"):
        value = _file(value, row, column)
        return _sound(value, row, column) if raw.kind == "audio" else value
    return _numbers(value, row, column)


def file_names(inputs: Sequence[RawInput], row: Row, columns: Columns) -> list[str]:
    """The pictures and sounds that a row names, for messages."""
    values = (row.values.get(columns.inputs[raw.name] or "") for raw in inputs if raw.kind in ("image", "audio"))
    paths = (value.get("path") if isinstance(value, Mapping) else value for value in values)
    return [str(path) for path in paths if isinstance(path, str | Path) and str(path)]


def _cell(row: Row, column: str) -> Any:
    if row.values.get(column) is None:
        raise CalibrationError(f"lacks {column!r}")
    return row.values[column]


def _file(value: Any, row: Row, column: str) -> Any:
    """Bytes or a path for a file; anything else as it is."""
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"} and "array" not in value:
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")     # as datasets stores them
    if isinstance(value, bytes) and not value:
        raise CalibrationError(f"has an empty file in the column {column!r}")
    if isinstance(value, str | Path):
        if not str(value):
            raise CalibrationError(f"names no file in the column {column!r}")
        path = Path(value) if row.folder is None else row.folder / value
        if not os.path.isfile(path):    # which raises on no text
            raise CalibrationError(f"names the file {str(value)!r:.200}, which is not there")
        return path
    if value is None:
        raise CalibrationError(f"names no file in the column {column!r}")
    return value


def _sound(value: Any, row: Row, column: str) -> Any:
    if isinstance(value, Mapping) and value.keys() >= {"array", RATE}:
        return np.asarray(value["array"]), value[RATE]
    if isinstance(value, list | np.ndarray):
        if row.values.get(RATE) is None:
            raise CalibrationError(f"has plain numbers as the sound in {column!r}: their rate in Hz is needed, in the "
                                   f"column {RATE!r}")
        return np.asarray(value), row.values[RATE]
    if isinstance(value, Path | bytes):
        head = value[:12] if isinstance(value, bytes) else _head(value)
        size = len(value) if isinstance(value, bytes) else value.stat().st_size
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            promised = int.from_bytes(head[4:8], "little")
            if size < promised + 8 and promised != 0xFFFFFFFF:      # that is what a pipe writes
                raise CalibrationError(f"has a sound that is cut off: {size} bytes of {promised + 8}")
    return value


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(12)
    except OSError as error:
        raise CalibrationError(f"names the file {path.name!r}, which cannot be read ({error.strerror})") from error


def _numbers(value: Any, row: Row, column: str) -> Any:
    if isinstance(value, str) and value.endswith(".npy"):
        path = _file(value, row, column)
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CalibrationError(f"names the file {value!r}, which is no array that can be read ({error})") from error
    if isinstance(value, str):
        return _number(value, column)
    return np.asarray(value) if isinstance(value, list) else value     # a list would be a batch


def _number(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise CalibrationError(f"has {value!r:.80} in the column {column!r}, expected a number") from None
