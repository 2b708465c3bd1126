"""Records of the manifest as dataclasses: each key a field, its JSON type the annotation, nothing else let in."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from runtimes.errors import RuntimesError
from runtimes.records import typed

T = TypeVar("T")


def build(kind: type[T], record: Any, where: str, *, tag: str | None = None) -> T:
    """The dataclass ``kind`` made of the JSON object ``record``; ``where`` names the place in the file.

    A field called ``from_`` is the key ``from``. ``tag`` is the key that chose ``kind``, and no field of it.

    Raises:
        RuntimesError: on an unknown or missing key, a value of another JSON type, or one that ``kind`` refuses.
    """
    record = typed(record, dict, where)
    known = {field.name.rstrip("_"): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(record.keys() - known.keys() - {tag})
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r}, expected one of {sorted(known)}")
    hints: Mapping[str, Any] = _hints(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key in record:
            values[field.name] = _value(hints[field.name], record[key], f"{where}: {key!r}")
        elif field.default is dataclasses.MISSING:
            raise RuntimesError(f"{where} lacks {key!r}")
    try:
        return kind(**values)
    except RuntimesError as error:
        raise RuntimesError(f"{where} {error}") from None


def build_one_of(kinds: Sequence[type[T]], record: Any, tag: str, where: str) -> T:
    """The one of ``kinds`` whose ``KIND`` is ``record[tag]``, made of the rest of ``record``."""
    by_name: dict[str, type[T]] = {kind.KIND: kind for kind in kinds}  # type: ignore[attr-defined]
    name = typed(record, dict, where).get(tag)
    if not isinstance(name, str) or name not in by_name:
        raise RuntimesError(f"{where}: {tag!r} is {name!r:.80}, expected one of {sorted(by_name)}")
    return build(by_name[name], record, where, tag=tag)


def to_json(value: Any, *, tag: str = "kind") -> Any:
    """The JSON a dataclass of this package is made of, fields at their defaults left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        record = {f.name.rstrip("_"): to_json(held, tag="op") for f, held in kept.items() if held != f.default}
        return {tag: value.KIND, **record} if hasattr(value, "KIND") else record
    return [to_json(item, tag=tag) for item in value] if isinstance(value, tuple) else value


def in_range(value: float | None, low: float, high: float, what: str) -> None:
    """Raise unless ``low <= value <= high``, or there is none."""
    if value is not None and not low <= value <= high:
        raise RuntimesError(f"has {what} {value}, expected a number from {low} to {high}")


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation ``kind`` says: a JSON type, a Literal, a tuple, a dataclass, or a union of these."""
    if kind is Any:
        return value
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise RuntimesError(f"{where} is {value!r:.80}, expected one of {list(get_args(kind))}")
        return value
    if get_origin(kind) in (typing.Union, types.UnionType):
        return _union([arm for arm in get_args(kind) if arm is not type(None)], kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), typed(value, list, where), where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    value = typed(value, kind, where)
    if kind is float and not math.isfinite(value):  # 1e999 is JSON
        raise RuntimesError(f"{where} is not a finite number")
    return value


def _union(arms: Sequence[Any], kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    if all(hasattr(arm, "KIND") for arm in arms):
        return build_one_of(arms, value, "op", where)
    lists = [arm for arm in arms if get_origin(arm) is tuple]
    others = [arm for arm in arms if get_origin(arm) is not tuple]
    return _value((lists if lists and (isinstance(value, list) or not others) else others)[0], value, where)


def _tuple(kinds: tuple[Any, ...], values: list[Any], where: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        return tuple(_value(kinds[0], value, f"{where}[{index}]") for index, value in enumerate(values))
    if len(values) != len(kinds):
        raise RuntimesError(f"{where} has {len(values)} items, expected {len(kinds)}")
    pairs = zip(kinds, values, strict=True)
    return tuple(_value(kind, value, f"{where}[{index}]") for index, (kind, value) in enumerate(pairs))
