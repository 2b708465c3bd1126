from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.readers import find_reader, webdataset


def shard(path: Path, **members: bytes) -> Path:
    """A tar file; "__" in a name stands for a dot, "S" for a slash."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", ".").replace("S", "/"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> list[tuple[str, Any]]:
    return [(row.where.rpartition("/")[2], row.problem or dict(row.values)) for row in webdataset.rows(path)]


def test_samples_in_the_order_of_shards_and_members(tmp_path: Path) -> None:
    shard(tmp_path / "s-000001.tar", c__txt=b"third", c__png=b"C")
    shard(tmp_path / "s-000000.tar", b__JPG=b"B", b__txt=b" first\n", b__cls=b"7\n", a__wav=b"A",
          a__json=b'{"text": "2"}')
    assert find_reader(tmp_path) is webdataset
    assert webdataset.files(tmp_path) == [tmp_path / "s-000000.tar", tmp_path / "s-000001.tar"]
    assert read(tmp_path) == [
        ("s-000000.tar, sample 'b'", {"image": b"B", "text": "first", "label": "7"}),
        ("s-000000.tar, sample 'a'", {"audio": b"A", "text": "2"}),
        ("s-000001.tar, sample 'c'", {"text": "third", "image": b"C"})]


def test_columns_named_by_extensions(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    path = shard(tmp_path / "x.tar", pS1__left__jpg=b"L", pS1__right__jpg=b"R", pS1__pose__npy=array.getvalue(),
                 pS1__odd=b"?", pS1__meta__json=b"[1]")
    ((where, values),) = read(path)
    assert where == "1'"
    np.testing.assert_array_equal(values.pop("pose"), [0, 1, 2])
    assert values == {"left": b"L", "right": b"R", "odd": b"?", "meta": [1]}


def test_paths_are_names_and_links_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("../../up.txt", tarfile.REGTYPE), ("/root.txt", tarfile.REGTYPE),
                           ("link.txt", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE), ("._mac.txt", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 1 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            archive.addfile(info, io.BytesIO(b"x"))
    assert [row.where for row in webdataset.rows(path)] == [f"{path}, sample '../../up'", f"{path}, sample 'root'"]
    assert list(tmp_path.iterdir()) == [path]


def test_samples_that_cannot_be_used(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", a__png=b"A", b__json=b"{", c__txt=b"\xff", d__npy=b"\x93NUMPY\x01\x00", e__txt=b"e",
          e__json=b'{"text": 1}')
    shard(tmp_path / "1.tar", a__png=b"A", f__txt=b"f")
    assert [(where, problem) for where, problem in read(tmp_path) if isinstance(problem, str)] == [
        ("0.tar, sample 'b'", "has the member 'json', which cannot be read (Expecting property name enclosed in double "
                              "quotes: line 1 column 2 (char 1))"),
        ("0.tar, sample 'c'", "has the member 'txt', which cannot be read ('utf-8' codec can't decode byte 0xff in "
                              "position 0: invalid start byte)"),
        ("0.tar, sample 'd'", "has the member 'npy', which cannot be read (EOF: reading array header length, expected "
                              "2 bytes got 0)"),
        ("0.tar, sample 'e'", "has the column 'text' twice: in 'json', and before"),
        ("1.tar, sample 'a'", f"has a name that is in {tmp_path / '0.tar'} already: rename one")]


def test_a_member_twice_and_a_name_that_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.txt", "a.txt", "b.txt", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    assert [problem for _, problem in read(path)] == [
        "has the member 'txt' twice", {"text": "x"}, f"has a name that is in {path} already: rename one"]


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.array([{}], object), allow_pickle=True)
    ((_, problem),) = read(shard(tmp_path / "x.tar", a__npy=array.getvalue()))
    assert "Object arrays cannot be loaded when allow_pickle=False" in problem


@pytest.mark.parametrize(
    ("length", "samples"), [(512 * 3 + 100, 0), (512 * 4, 1), (512 * 4 + 100, 1), (100, 0), (0, 0)],
    ids=["in a member", "after a member", "in a header", "in the first header", "empty"])
def test_a_shard_that_is_cut_off(tmp_path: Path, length: int, samples: int) -> None:
    path = shard(tmp_path / "0.tar", a__txt=b"a" * 10, b__txt=b"b" * 512, c__txt=b"c")
    path.write_bytes(path.read_bytes()[:length])
    shard(tmp_path / "1.tar", z__txt=b"z")
    *before, (where, problem), (_, after) = read(tmp_path)
    assert where == "0.tar"
    assert "is cut off or damaged" in problem
    assert "the sample before that and all after it are lost, copy the shard again" in problem
    assert len(before) == samples
    assert after == {"text": "z"}


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", a__txt=b"a", b__txt=b"b")
    data = bytearray(path.read_bytes())
    data[1024:1030] = b"\xff" * 6
    path.write_bytes(data)
    ((where, problem),) = read(path)
    assert where == "0.tar"
    assert problem.startswith("is cut off or damaged at byte 1024: the sample before that and all after it are lost")


def test_a_shard_that_cannot_be_opened(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", a__txt=b"a")
    rows = webdataset.rows(tmp_path / "0.tar")
    (tmp_path / "0.tar").unlink()
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(CalibrationError, match=r"0\.tar cannot be read \(Is a directory\)"):
        list(webdataset._members(tmp_path / "0.tar"))
    assert list(rows) == []
