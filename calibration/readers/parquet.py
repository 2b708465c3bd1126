"""Parquet files: a row a sample; pictures and sounds as bytes, as ``{"bytes", "path"}`` or as names of files beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calibration.columnar import BATCH, pyarrow, rows_of
from calibration.errors import CalibrationError
from calibration.rows import Row

FORM = "parquet"


def takes(path: Path) -> bool:
    return bool(files(path))


def files(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their names."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(file for file in path.glob("*.parquet") if file.is_file())


def rows(path: Path) -> Iterator[Row]:
    for file in files(path):
        arrow = pyarrow(file)
        try:
            with arrow.parquet.ParquetFile(file) as table:
                yield from rows_of(file, table.iter_batches(batch_size=BATCH))
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise CalibrationError(f"{file} is no Parquet file that can be read ({error}): write it again") from error
