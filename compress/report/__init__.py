"""The report: report.json is the record; the page (report.html) and the terminal's tables are views of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compress.errors import CompressError

__all__ = ["ReportPaths", "judge", "read_record", "report", "show"]


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a report."""

    json: Path
    html: Path


def report(record: Mapping[str, Any], into: Path) -> ReportPaths:
    """Write ``report.json`` and ``report.html`` into the folder ``into``; the same record gives the same bytes.

    Each file appears under its name only when it is complete, and nothing is written of a record that is not valid.

    Args:
        record: JSON values only; the schema is :class:`compress.report.schema.Record`.
        into: the folder, made where it does not exist.

    Raises:
        CompressError: if the record is not valid, naming the place in it, or a file cannot be written, naming it.
    """
    from compress.report.page import render
    from compress.report.schema import validate
    from runtimes.hashing import bytes_digest

    checked = validate(record)
    data = (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    paths = ReportPaths(json=into / "report.json", html=into / "report.html")
    page = render(checked, bytes_digest(data)).encode()
    try:
        into.mkdir(parents=True, exist_ok=True)
        _write(paths.json, data)
        _write(paths.html, page)
    except OSError as error:
        raise CompressError(
            f"the report cannot be written to {into} ({error.strerror or error}): "
            "make room there, or name another folder"
        ) from error
    return paths


def read_record(path: Path) -> dict[str, Any]:
    """The record in the report.json at ``path``, or in the folder ``path``.

    Raises:
        CompressError: if it cannot be read or is not a valid record; names the file.
    """
    from compress.report.schema import read_record

    return read_record(path / "report.json" if path.is_dir() else path)


def show(record: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print the verdict and the tables of ``record`` to ``file``, standard output by default.

    Raises:
        CompressError: if the record is not valid; names the place in it.
    """
    from compress.report.schema import validate
    from compress.report.terminal import print_report

    print_report(validate(record), file)


def judge(bench: Mapping[str, Any], max_drop: float | None = None) -> dict[str, Any]:
    """The record's ``verdict`` for a ``bench`` record: the budget, whether it is kept, and the sentence that says so.

    ``max_drop`` is in the metric's own unit: 0.01 is one point of accuracy.

    Raises:
        CompressError: if ``bench`` is not a bench record.
    """
    import msgspec

    from compress.bench.record import BenchRecord
    from compress.report.verdict import judge

    verdict: dict[str, Any] = msgspec.to_builtins(judge(BenchRecord.from_json(bench), max_drop))
    return verdict


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
