"""Forms that samples come in, one file each: what it takes, the files that are read, and their rows in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

from calibration.errors import CalibrationError
from calibration.readers import arrow, captions, folder, npz, parquet, webdataset
from calibration.rows import Row

__all__ = ["Reader", "find_reader"]


class Reader(Protocol):
    """A module of this folder. Rows have one order, which depends on names and contents alone."""

    FORM: str

    def takes(self, path: Path) -> bool:
        """Whether ``path``, which exists, has this form; nothing but names is looked at."""

    def files(self, path: Path) -> list[Path]:
        """Every file that the rows are read from, for their digest."""

    def rows(self, path: Path) -> Iterator[Row]:
        """The samples; one that cannot be used has a ``problem``.

        Raises:
            CalibrationError: naming the file, if it cannot be read at all.
        """


_READERS: tuple[ModuleType, ...] = (captions, webdataset, parquet, arrow, npz, folder)     # the first that takes it


def find_reader(path: Path) -> Reader:
    """The reader of what lies at ``path``.

    Raises:
        CalibrationError: if there is nothing, or nothing that one of them takes.
    """
    if not path.exists():
        raise CalibrationError(f"{path} does not exist: name a folder or a file of samples")
    for module in _READERS:
        if module.takes(path):
            reader: Reader = module
            return reader
    raise CalibrationError(
        f"{path} holds no samples that are read: expected a folder of pictures or sounds with a captions file (CSV, "
        "TSV or JSONL) or with texts of the same names, WebDataset shards (.tar), Parquet or .npz files, or a data set "
        "that the library datasets saved")
