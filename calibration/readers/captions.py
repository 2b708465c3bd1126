"""A table of captions or transcripts (CSV, TSV or JSONL, in UTF-8) beside the pictures and sounds that it names."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.rows import Row

FORM = "captions"
_SUFFIXES = (".csv", ".tsv", ".jsonl")
_LONGEST_CELL = 2**24


def takes(path: Path) -> bool:
    return bool(_tables(path))


def files(path: Path) -> list[Path]:
    """The table, and every file that a cell of it names."""
    table = _table(path)
    named = {table.parent / value for row in rows(path) for value in row.values.values()
             if isinstance(value, str) and os.path.isfile(table.parent / value)}     # which raises on no text
    return [table, *sorted(named)]


def rows(path: Path) -> Iterator[Row]:
    table = _table(path)
    lines = _jsonl(table) if table.suffix == ".jsonl" else _csv(table)
    seen: dict[str, int] = {}
    for number, values, wrong in lines:
        first = number if wrong else seen.setdefault(json.dumps(values, sort_keys=True), number)
        problem = wrong or (f"is the same as line {first}" if first != number else None)
        yield Row(where=f"{table}, line {number}", values=values, folder=table.parent, problem=problem)


def _tables(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in _SUFFIXES else []
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())


def _table(path: Path) -> Path:
    first, *more = _tables(path)
    if more:
        raise CalibrationError(f"{path} holds several tables, {first.name!r} and {more[0].name!r}: name the one to "
                               f"read ({first})")
    return first


def _text(table: Path) -> str:
    try:
        data = table.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CalibrationError(f"{table}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8: "
                               "save the file as UTF-8") from error
    except OSError as error:
        raise CalibrationError(f"{table} cannot be read ({error.strerror})") from error


def _csv(table: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    text = _text(table)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(table, text), strict=True)
        header = next(reader, [])
        double = [name for index, name in enumerate(header) if not name or name in header[:index]]
        if double or not header:
            named = f"has the column {double[0]!r} twice" if double and double[0] else "has a column without a name"
            raise CalibrationError(f"{table} {named if header else 'is empty'}: its first line names the columns, "
                                   "such as file,text")
        start = reader.line_num + 1
        for cells in reader:
            if cells:       # not a blank line
                wrong = len(cells) != len(header)
                problem = (f"has {len(cells)} cells, expected {len(header)}: quote texts that hold the separator"
                           if wrong else None)
                yield start, {} if wrong else dict(zip(header, cells, strict=True)), problem
            start = reader.line_num + 1
    except csv.Error as error:
        raise CalibrationError(f"{table}, line {reader.line_num}: is no CSV ({error}): correct the quotes") from error
    finally:
        csv.field_size_limit(limit)


def _separator(table: Path, text: str) -> str:
    """Of a ``.csv`` what its first line has: spreadsheets write semicolons where the comma is a decimal point."""
    if table.suffix == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in text.partition("\n")[0]), ",")


def _jsonl(table: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    for number, line in enumerate(_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            yield number, {}, f"is no JSON object ({error})"
            continue
        if isinstance(values, dict):
            yield number, values, None
        else:
            yield number, {}, f"is a JSON {type(values).__name__}, expected an object such as {{\"file\": ..., ...}}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON keeps the last of two equal keys without a word."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
