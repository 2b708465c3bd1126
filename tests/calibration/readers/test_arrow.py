"""Data sets as ``save_to_disk`` of datasets 5.2 lays them out, made here with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibration import CalibrationError
from calibration.readers import arrow, find_reader

pa: Any = pytest.importorskip("pyarrow")


def saved(folder: Path, *parts: list[str], **state: Any) -> Path:
    """Each of ``parts`` is the column ``text`` of a file of its own, in Arrow's stream format."""
    folder.mkdir(parents=True)
    names = [f"data-{index:05}-of-{len(parts):05}.arrow" for index in range(len(parts))]
    for name, texts in zip(names, parts, strict=True):
        table = pa.table({"text": texts})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    record = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(record))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read(path: Path) -> list[tuple[str, object]]:
    return [(row.where.rpartition("/")[2], dict(row.values)) for row in arrow.rows(path)]


def test_a_saved_data_set(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", ["a", "b", "c"], ["d"])
    assert find_reader(folder) is arrow
    assert arrow.files(folder) == [folder / "data-00000-of-00002.arrow", folder / "data-00001-of-00002.arrow"]
    assert read(folder) == [
        ("data-00000-of-00002.arrow, row 1", {"text": "a"}), ("data-00000-of-00002.arrow, row 2", {"text": "b"}),
        ("data-00000-of-00002.arrow, row 3", {"text": "c"}), ("data-00001-of-00002.arrow, row 1", {"text": "d"})]


def test_a_file_with_an_index_at_its_end(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "x.arrow") == [("x.arrow, row 1", {"text": "a"}), ("x.arrow, row 2", {"text": "b"})]


def test_several_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / split, ["a"])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(CalibrationError, match=r"holds the splits \['test', 'train'\]: name one, such as .*/test$"):
        read(tmp_path)


def test_a_selection_by_an_index(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", ["a"], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(CalibrationError, match="selects rows by an index: save it again"):
        read(folder)


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"_data_files": [1]}'])
def test_a_damaged_state(tmp_path: Path, state: str) -> None:
    folder = saved(tmp_path / "set", ["a"])
    (folder / "state.json").write_text(state)
    with pytest.raises(CalibrationError, match=r"state\.json is damaged"):
        read(folder)


@pytest.mark.parametrize("name", ["gone.arrow", "../x.arrow"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.arrow").write_bytes(b"")
    folder = saved(tmp_path / "set", ["a"], _data_files=[{"filename": name}])
    with pytest.raises(CalibrationError, match=r"state\.json lists .* which are not all there"):
        read(folder)


@pytest.mark.parametrize("length", [0, 40, 400])
def test_a_damaged_file(tmp_path: Path, length: int) -> None:
    folder = saved(tmp_path / "set", ["a" * 1000])
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CalibrationError, match=r"00001\.arrow is no Arrow file that can be read .*: write it again"):
        read(folder)
