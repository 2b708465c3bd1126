from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration import CalibrationError, write, writing


def samples(count: int = 5) -> dict[str, np.ndarray]:
    return {"image": np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2), "file": np.arange(count)}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_shards_and_record(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", samples(), np.arange(5) * 10, shard_size=2)
    record = json.loads((folder / "dataset.json").read_text())
    assert record == {
        "format": "compress.dataset", "version": 1, "count": 5, "targets": {"target": {"dtype": "int64", "shape": []}},
        "inputs": {"image": {"dtype": "float32", "shape": [2, 2]}, "file": {"dtype": "int64", "shape": []}},
        "shards": [{"file": f"{i:04d}.npz", "count": count, "sha256": contents(folder)[f"{i:04d}.npz"]}
                   for i, count in enumerate([2, 2, 1])]}
    with np.load(folder / "0001.npz", allow_pickle=False) as shard:
        assert sorted(shard.files) == ["file", "image", "target"]
        np.testing.assert_array_equal(shard["image"], samples()["image"][2:4])
        np.testing.assert_array_equal(shard["file"], [2, 3])
        np.testing.assert_array_equal(shard["target"], [20, 30])


def test_the_bytes_do_not_depend_on_time_memory_order_or_byte_order(tmp_path: Path) -> None:
    first = contents(write(tmp_path / "a", samples()))
    time.sleep(2.1)  # zip time stamps count in steps of two seconds
    twisted = {"image": np.asfortranarray(samples()["image"]), "file": samples()["file"].astype(">i8")}
    assert contents(write(tmp_path / "b", twisted)) == first


def test_an_iterable_of_several_shapes(tmp_path: Path) -> None:
    def chunks() -> Iterator[dict[str, np.ndarray]]:
        buffer = np.zeros((1, 3), np.int64)
        for index in range(5):
            buffer[:] = index                               # the caller reuses its memory
            yield {"text": buffer, "target": np.array([index])}
        yield {"target": np.array([5, 6]), "text": np.full((2, 4), 5)}

    folder = write(tmp_path / "set", chunks(), shard_size=4)
    record = json.loads((folder / "dataset.json").read_text())
    assert [shard["count"] for shard in record["shards"]] == [4, 1, 2]
    assert record["inputs"] == {"text": {"dtype": "int64", "shape": [None]}}
    with np.load(folder / "0000.npz") as shard:
        np.testing.assert_array_equal(shard["text"][:, 0], [0, 1, 2, 3])


def test_a_shard_is_closed_at_its_size_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 48)  # two samples of 24 bytes
    assert len(json.loads((write(tmp_path / "set", samples()) / "dataset.json").read_text())["shards"]) == 3


def test_a_data_set_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "set", samples(9), shard_size=1)
    folder = write(tmp_path / "set", samples(2))
    assert sorted(path.name for path in folder.iterdir()) == ["0000.npz", "dataset.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert write(tmp_path / "set", samples()) == tmp_path / "set"


@pytest.mark.parametrize("name", ["notes.txt", "0000.npz"])
def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(CalibrationError, match="precious exists and holds something"):
        write(folder, samples())
    (folder / "dataset.json").write_text("{}")
    if name == "notes.txt":
        with pytest.raises(CalibrationError, match=r"'notes\.txt'"):
            write(folder, samples())
    assert (folder / name).read_text() == "mine"


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(CalibrationError, match="is no folder"):
        write(tmp_path / "set", samples())


def test_a_failure_leaves_the_old_set_and_nothing_else(tmp_path: Path) -> None:
    before = contents(write(tmp_path / "set", samples()))

    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield samples()
        raise RuntimeError("the camera fell over")

    with pytest.raises(RuntimeError, match="camera"):
        write(tmp_path / "set", broken(), shard_size=2)
    assert contents(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CalibrationError, match=r"data set .*/set: the disk is full, \d+ MiB free"):
        write(tmp_path / "set", samples())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match=r"cannot write the data set .*Not a directory"):
        write(tmp_path / "file" / "set", samples())


def test_what_a_killed_write_left_is_cleared_or_put_back(tmp_path: Path) -> None:
    before = contents(write(tmp_path / "set", samples()))
    (tmp_path / "set").rename(tmp_path / ".set.old")     # killed between the two renames
    (tmp_path / ".set.partial").mkdir()
    with pytest.raises(CalibrationError, match="no samples"):
        write(tmp_path / "set", [])
    assert contents(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(("bad", "what"), [
    ({}, "hold no inputs"),
    ({"target": np.zeros(3)}, "hold no inputs"),
    ({"image": np.zeros((0, 2))}, r"'image' has shape \(0, 2\)"),
    ({"image": np.float32(3)}, r"'image' has shape \(\)"),
    ({"image": np.zeros((3, 2)), "text": np.zeros(2, np.int64)}, "'text' holds 2 samples, but 'image' holds 3"),
    ({"image": np.array([object()])}, "'image' has dtype object"),
    ({"image": np.array([1.0, np.nan])}, r"'image' has a value that is not finite \(nan\) at index \(1,\)"),
])
def test_bad_samples(tmp_path: Path, bad: dict[str, np.ndarray], what: str) -> None:
    with pytest.raises(CalibrationError, match=what):
        write(tmp_path / "set", bad)
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_disagree(tmp_path: Path) -> None:
    image = np.zeros((1, 2), np.float32)
    with pytest.raises(CalibrationError, match=r"have the arrays \['other'\], those before them \['image'\]"):
        write(tmp_path / "set", [{"image": image}, {"other": image}])
    for other in (image[0], image.astype(np.float64)):
        with pytest.raises(CalibrationError, match=r"'image': a sample is .* dtype and rank must not change"):
            write(tmp_path / "set", [{"image": image}, {"image": other}])


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="shard_size is 0"):
        write(tmp_path / "set", samples(), shard_size=0)
    with pytest.raises(CalibrationError, match="labels were given twice"):
        write(tmp_path / "set", {**samples(), "target": np.zeros(5)}, np.zeros(5))
    with pytest.raises(CalibrationError, match="put the labels of each into its mapping"):
        write(tmp_path / "set", [samples()], np.zeros(5))


def test_labels_of_several_tasks_and_texts(tmp_path: Path) -> None:
    target = {"action": np.arange(5), "said": np.array(["on", "off", "a", "b", "up"])}
    folder = write(tmp_path / "set", samples(), target, shard_size=2)
    record = json.loads((folder / "dataset.json").read_text())
    assert record["targets"] == {"target.action": {"dtype": "int64", "shape": []},
                                 "target.said": {"dtype": "str", "shape": []}}
    with np.load(folder / "0000.npz") as shard:
        assert shard["target.said"].tolist() == ["on", "off"]
    with pytest.raises(CalibrationError, match=r"given twice: as target=, and as 'target\.action' among the samples"):
        write(tmp_path / "set", {**samples(), "target.action": np.arange(5)}, target)
