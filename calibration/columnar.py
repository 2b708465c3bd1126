"""Rows of Arrow tables, for the readers of Parquet and of Arrow files; pyarrow is imported when one is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.rows import NamedClass, Row

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
        batch.validate(full=True)       # a damaged buffer would otherwise be read beyond its end
        names = batch.schema.names
        if len(set(names)) != len(names):
            raise CalibrationError(f"{path} has a column twice: {names}")
        named = _class_names(path, batch.schema)
        for start in range(0, batch.num_rows, BATCH):
            for values in batch.slice(start, BATCH).to_pylist():
                number += 1
                for column, classes in named.items():
                    index = values[column]
                    if index is not None and 0 <= index < len(classes):     # datasets writes -1 for no label
                        values[column] = NamedClass.of(index, classes[index])
                yield Row(where=f"{path}, row {number}", values=values, folder=path.parent)


def _class_names(path: Path, schema: Any) -> dict[str, list[str]]:
    """Column -> the names of its classes, as the library datasets records them."""
    record = (schema.metadata or {}).get(b"huggingface")
    if record is None:
        return {}
    try:
        features = json.loads(record)["info"]["features"]
        return {column: [str(name) for name in feature["names"]] for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: what datasets says of its columns is damaged ({type(error).__name__}: {error})"
                               ) from error
