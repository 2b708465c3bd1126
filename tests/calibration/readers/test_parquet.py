from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calibration import CalibrationError
from calibration.readers import find_reader, parquet
from calibration.rows import NamedClass

pa: Any = pytest.importorskip("pyarrow")
pq: Any = pytest.importorskip("pyarrow.parquet")


def put(path: Path, metadata: dict[str, str] | None = None, **columns: Any) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def read(path: Path) -> list[tuple[str, object]]:
    return [(row.where.rpartition("/")[2], dict(row.values)) for row in parquet.rows(path)]


def test_rows_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(tmp_path / "b.parquet", text=["third"], pixels=[None])
    put(tmp_path / "a.parquet", text=["first", "second"], pixels=[[1.5, 2.0], [3.0]])
    assert find_reader(tmp_path) is parquet
    assert parquet.files(tmp_path) == [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert read(tmp_path) == [
        ("a.parquet, row 1", {"text": "first", "pixels": [1.5, 2.0]}),
        ("a.parquet, row 2", {"text": "second", "pixels": [3.0]}),
        ("b.parquet, row 1", {"text": "third", "pixels": None})]


def test_more_rows_than_are_held_at_once(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x.parquet", number=list(range(150))))
    assert found[149] == ("x.parquet, row 150", {"number": 149})
    assert [values["number"] for _, values in found] == list(range(150))    # type: ignore[index]


def test_the_names_of_classes_that_datasets_records(tmp_path: Path) -> None:
    label, text = {"names": ["dog", "cat"], "_type": "ClassLabel"}, {"dtype": "string", "_type": "Value"}
    record = {"huggingface": json.dumps({"info": {"features": {"label": label, "text": text}}})}
    path = put(tmp_path / "x.parquet", record, label=[1, -1, None], text=["a", "b", "c"])
    first, second, third = [row.values["label"] for row in parquet.rows(path)]
    assert isinstance(first, NamedClass)
    assert (first, first.name, second, third) == (1, "cat", -1, None)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = put(tmp_path / "x.parquet", text=["a"] * 1000)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CalibrationError, match=r"x\.parquet is no Parquet file that can be read .*: write it again"):
        read(path)


def test_what_datasets_says_is_damaged(tmp_path: Path) -> None:
    path = put(tmp_path / "x.parquet", {"huggingface": "{}"}, text=["a"])
    with pytest.raises(CalibrationError, match=r"x\.parquet: what datasets says of its columns is damaged \(KeyError"):
        read(path)


def test_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(CalibrationError, match=r"x\.parquet has a column twice: \['a', 'a'\]"):
        read(tmp_path)


def test_without_pyarrow(tmp_path: Path) -> None:
    put(tmp_path / "x.parquet", text=["a"])
    code = ("import sys; sys.modules['pyarrow'] = None\nfrom pathlib import Path\nimport calibration\n"
            "from calibration.readers import find_reader\npath = Path(sys.argv[1])\n"
            "try: list(find_reader(path).rows(path))\nexcept calibration.CalibrationError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == (f"{tmp_path / 'x.parquet'} needs the package pyarrow, which is not installed: "
                           'pip install "compress-edge[data]"\n')
