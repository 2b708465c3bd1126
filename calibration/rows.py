"""One sample as a source holds it, before the model's processing: named columns, and where they were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NamedClass(int):
    """The index of a class in a data set that says what its classes are called; the model's order may be another."""

    name: str

    @classmethod
    def of(cls, index: int, name: str) -> NamedClass:
        made = cls(index)
        made.name = name
        return made


@dataclass(frozen=True, kw_only=True)
class Row:
    """``values`` are strings, numbers, lists, bytes, arrays, or what a Python iterable gave, by column."""

    where: str                          # what messages call it: "captions.csv, line 3"
    values: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None          # that the names of files among the values are relative to
    problem: str | None = None          # why it cannot be used; its values are not looked at then
