"""Changed and cut-off files of every form are read, or refused by name; nothing else comes of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.readers import find_reader
from tests.calibration.readers.test_arrow import saved
from tests.calibration.readers.test_webdataset import shard


def made(form: str, folder: Path) -> Path:
    if form == "arrow":
        return saved(folder / "set", ["one", "two"] * 9) / "data-00000-of-00001.arrow"
    if form == "parquet":
        pa: Any = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        table = pa.table({"text": ["one", "two"], "image": [{"bytes": b"x"}, None]})
        pyarrow.parquet.write_table(table, folder / "x.parquet")
        return folder / "x.parquet"
    if form == "webdataset":
        return shard(folder / "x.tar", a__txt=b"one", a__json=b'{"label": 1}', b__txt=b"two", b__cls=b"2")
    if form == "npz":
        np.savez(folder / "x.npz", text=["one", "two"], image=np.zeros((2, 4, 4), np.uint8))
        return folder / "x.npz"
    path = folder / f"x.{form}"
    table = 'file,text\na.png,"one, two"\nb.png,three\n'
    path.write_text(table if form == "csv" else '{"file": "a.png", "label": [1]}\n' * 3)
    return path


@pytest.mark.parametrize("form", ["arrow", "csv", "jsonl", "npz", "parquet", "webdataset"])
def test_damage_is_refused_or_read(form: str, tmp_path: Path) -> None:
    path = made(form, tmp_path)
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        path.write_bytes(data)
        try:
            refused += any(row.problem for row in find_reader(path).rows(path))
        except CalibrationError as error:
            assert path.name in str(error)      # noqa: PT017 - not every change is refused
            refused += 1
    assert refused > 30
