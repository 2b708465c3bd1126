"""Where raw samples are: a folder or file of one of the forms in ``calibration/readers/``, or a Python iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from calibration.readers import find_reader
from calibration.rows import Row
from runtimes.hashing import file_digest, json_digest

Source: TypeAlias = "Path | str | Iterable[Mapping[str, Any]]"


class Samples:
    """The rows of a source, as often as they are asked for."""

    def __init__(self, source: Source) -> None:
        self._path = Path(source) if isinstance(source, str | Path) else None
        self._reader = None if self._path is None else find_reader(self._path)
        self._given: Iterable[Mapping[str, Any]] = () if isinstance(source, str | Path) else source
        self.form = "iterable" if self._reader is None else self._reader.FORM
        self.name = "the iterable" if self._path is None else str(self._path)

    def keep(self) -> None:
        """Make an iterable that may be read only once one that is read twice."""
        self._given = list(self._given)

    def __iter__(self) -> Iterator[Row]:
        if self._reader is not None and self._path is not None:
            yield from self._reader.rows(self._path)
        for number, values in enumerate(self._given, 1):
            problem = None if isinstance(values, Mapping) else f"is of type {type(values).__name__}: give mappings"
            yield Row(where=f"sample {number}", values={} if problem else values, problem=problem)

    def digest(self) -> str:
        """Empty for an iterable, whose samples have no files."""
        if self._reader is None or self._path is None:
            return ""
        top = self._path if self._path.is_dir() else self._path.parent
        files = self._reader.files(self._path)
        return json_digest([[file.relative_to(top).as_posix() if file.is_relative_to(top) else file.as_posix(),
                             file_digest(file)] for file in files])
