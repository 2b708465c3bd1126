"""Rows of Arrow tables, for the readers of Parquet and of Arrow files; pyarrow is imported when one is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.rows import Row

BATCH = 64      # rows in memory at once
INSTALL = 'pip install "compress-edge[data]"'


def pyarrow(path: Path) -> Any:
    """The package; ``path`` is what needs it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise CalibrationError(f"{path} needs the package pyarrow, which is not installed: {INSTALL}") from error
    return pyarrow


def rows_of(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of record batches of ``path``; each is made of its own Python values."""
    number = 0
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) != len(names):
            raise CalibrationError(f"{path} has a column twice: {names}")
        for start in range(0, batch.num_rows, BATCH):
            for values in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield Row(where=f"{path}, row {number}", values=values, folder=path.parent)
