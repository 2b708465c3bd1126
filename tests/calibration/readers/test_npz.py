from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.readers import find_reader, npz


def test_rows_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    pictures = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez(tmp_path / "b.npz", image=pictures[2:], question=["what ?"], label=[7])
    np.savez(tmp_path / "a.npz", image=pictures[:2], question=["is it ?", "why ?"], label=[5, 6])
    assert find_reader(tmp_path) is npz
    rows = list(npz.rows(tmp_path))
    assert [row.where for row in rows] == [
        f"{tmp_path / 'a.npz'}, row 1", f"{tmp_path / 'a.npz'}, row 2", f"{tmp_path / 'b.npz'}, row 1"]
    np.testing.assert_array_equal([row.values["image"] for row in rows], pictures)
    assert [row.values["question"] for row in rows] == ["is it ?", "why ?", "what ?"]
    assert [row.values["label"] for row in rows] == [5, 6, 7]


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 4)), label=[1])
    with pytest.raises(CalibrationError, match=r"a\.npz has arrays of different lengths \({'image': 2, 'label': 1}\)"):
        list(npz.rows(tmp_path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    np.savez(tmp_path / "pickle.npz", a=np.array([{}], object))
    for name, data in {"alone": stream.getvalue(), "damaged": b"PK\x03\x04 and no more", "empty": b""}.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
    for name in ("alone", "damaged", "empty", "pickle"):
        with pytest.raises(CalibrationError, match=rf"{name}\.npz is no \.npz file that can be read .*: write it"):
            list(npz.rows(tmp_path / f"{name}.npz"))
