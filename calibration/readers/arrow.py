"""What ``save_to_disk`` of the library datasets wrote, and Arrow files; datasets itself is not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.columnar import pyarrow, rows_of
from calibration.errors import CalibrationError
from calibration.rows import Row

FORM = "arrow"
_STATE = "state.json"               # of a data set
_SPLITS = "dataset_dict.json"       # of several


def takes(path: Path) -> bool:
    return path.suffix == ".arrow" if path.is_file() else any((path / name).is_file() for name in (_STATE, _SPLITS))


def files(path: Path) -> list[Path]:
    """The file, or those that the saved data set lists, in its order."""
    if path.is_file():
        return [path]
    if (path / _SPLITS).is_file():
        splits = sorted(file.parent.name for file in path.glob(f"*/{_STATE}"))
        raise CalibrationError(f"{path} holds the splits {splits}: name one, such as {path / (splits or ['train'])[0]}")
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise CalibrationError(f"{path} selects rows by an index: save it again with a newer release of datasets")
        names = [entry["filename"] for entry in state["_data_files"]]
        found = [path / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path / _STATE} is damaged ({type(error).__name__}: {error}): save the data set again"
                               ) from error
    if len(found) != len(names) or not all(file.is_file() for file in found):
        raise CalibrationError(f"{path / _STATE} lists {names}, which are not all there: save the data set again")
    return found


def rows(path: Path) -> Iterator[Row]:
    for file in files(path):
        arrow = pyarrow(file)
        try:
            with arrow.memory_map(str(file)) as source, _opened(arrow, source) as batches:
                yield from rows_of(file, batches)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise CalibrationError(f"{file} is no Arrow file that can be read ({error}): write it again") from error


def _opened(arrow: Any, source: Any) -> Any:
    """The batches of a stream, as datasets writes it, or of a file with an index at its end."""
    magic = source.read(6)
    source.seek(0)
    if magic != b"ARROW1":
        return arrow.ipc.open_stream(source)
    file = arrow.ipc.open_file(source)
    return arrow.RecordBatchReader.from_batches(
        file.schema, (file.get_batch(index) for index in range(file.num_record_batches)))
