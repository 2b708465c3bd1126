"""JSON records read from disk: parsed strictly, and every key fetched with the type it must have."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from runtimes.errors import RuntimesError

T = TypeVar("T")

_JSON_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", list: "a list",
               dict: "an object"}


def parse_record(data: bytes, where: str, *, format: str, version: int) -> dict[str, Any]:
    """The JSON object in ``data``, whose ``format`` and ``version`` must be the ones given; ``where`` names the file.

    Raises:
        RuntimesError: if ``data`` is not JSON, not an object, of another format, or of another version.
    """
    try:
        record = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RuntimesError(f"{where} is not JSON ({error}): it is damaged, write it again") from error
    if not isinstance(record, dict) or record.get("format") != format:
        raise RuntimesError(f"{where} is not a {format!r} record: name a folder that holds one")
    found = record.get("version")
    if type(found) is not int or found != version:
        raise RuntimesError(
            f"{where} has format version {found!r} and this software reads version {version}: "
            "install the version of compress-edge that wrote it, or write it again with this one"
        )
    return record


def get(record: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """``record[key]``, which must be of JSON type ``kind``; ``where`` names the file and the place in it."""
    if key not in record:
        raise RuntimesError(f"{where} lacks {key!r}: it is damaged, write it again")
    return typed(record[key], kind, f"{where}: {key!r}")


def typed(value: Any, kind: type[T], where: str) -> T:
    """``value``, which must be of JSON type ``kind``."""
    if kind is float and type(value) is int:
        value = _to_float(value, where)
    if type(value) is not kind:
        raise RuntimesError(f"{where} must be {_JSON_NAMES[kind]}, got {value!r:.80}: it is damaged, write it again")
    return value


def strings(record: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """``record[key]``, an object whose values are strings."""
    place = f"{where}: {key!r}"
    return {name: typed(value, str, f"{place}[{name!r}]") for name, value in get(record, key, dict, where).items()}


def string_list(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """``record[key]``, a list of strings."""
    return tuple(typed(item, str, f"{where}: an item of {key!r}") for item in get(record, key, list, where))


def inside(path: str, where: str) -> str:
    """``path`` if it is relative, in normal form, with forward slashes and inside the folder; else an error."""
    parts = PurePosixPath(path)
    plain = bool(path) and path == parts.as_posix() and path.isprintable() and not set(path) & set('\\:*?"<>|')
    if not plain or parts.is_absolute() or path == "." or ".." in parts.parts:
        raise RuntimesError(
            f"{where} names the path {path!r:.200}, which is not a plain path inside the folder: do not use this file"
        )
    return path


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as sorted JSON; the file appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RuntimesError(f"{where} is too large a number: it is damaged, write it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each key of it given once: of two values, readers would take different ones."""
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
