from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from runtimes.arrays import parse_arrays, read_arrays, read_batches, write_arrays, write_batches
from runtimes.errors import RuntimesError


def test_round_trip_with_any_name(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"file": np.arange(3), "a": np.array(2.5), "none": np.zeros((0, 2), bool)}
    write_arrays(tmp_path / "a.npz", arrays)
    read = read_arrays(tmp_path / "a.npz")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    with np.load(tmp_path / "a.npz") as by_numpy:
        np.testing.assert_array_equal(by_numpy["file"], np.arange(3))


def test_same_arrays_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    monkeypatch.setattr("time.time", lambda: 0.0)
    write_arrays(tmp_path / "b.npz", {"x": np.arange(3)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pickle"):
        write_arrays(tmp_path / "a.npz", {"x": np.array([{}], dtype=object)})
    assert not list(tmp_path.iterdir())


def test_a_header_that_cannot_be_split_into_tokens(tmp_path: Path) -> None:
    """numpy tries such a header again as one that Python 2 wrote, with Python's tokenizer."""
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(3, np.float32)})
    data = (tmp_path / "a.npz").read_bytes()
    assert b"(3,)" in data
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", zipfile.ZipFile(tmp_path / "a.npz").read("x.npy").replace(b"(3,)", b"(3, "))
    with pytest.raises(RuntimesError, match=r"b\.npz is not an \.npz file of plain arrays"):
        read_arrays(tmp_path / "b.npz")


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"no\.npz cannot be read"):
        read_arrays(tmp_path / "no.npz")
    for data in (b"", b"PK", b"\x93NUMPY\x01\x00", b"\x80\x04N."):
        with pytest.raises(RuntimesError, match=r"x\.npz is not an \.npz file"):
            parse_arrays(data, "x.npz")


def test_batches_of_several_shapes(tmp_path: Path) -> None:
    """Neighbours of one shape are joined; more than ten keep their order; a name may have a slash."""
    sizes = [(2, 3), (1, 3), (2, 4), (2, 3), *((1, 5 + i % 2) for i in range(10))]
    batches = [{"ids": np.full(size, i), "a/b": np.arange(size[0])} for i, size in enumerate(sizes)]
    write_batches(tmp_path / "a.npz", batches)
    read = read_batches(tmp_path / "a.npz")
    assert [batch["ids"].shape for batch in read] == [(3, 3), *sizes[2:]]
    assert read[0]["ids"][:, 0].tolist() == [0, 0, 1]
    assert [int(batch["ids"][0, 0]) for batch in read[1:]] == list(range(2, 14))
    assert read[0]["a/b"].tolist() == [0, 1, 0]
    write_arrays(tmp_path / "b.npz", {"ids": np.arange(3)})
    with pytest.raises(RuntimesError, match=r"b\.npz holds the array 'ids', which is of no batch"):
        read_batches(tmp_path / "b.npz")
