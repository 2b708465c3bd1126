from __future__ import annotations

from pathlib import Path

import pytest

from calibration import CalibrationError
from calibration.readers import find_reader, folder


def put(root: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(root: Path) -> list[tuple[str, object]]:
    rows = folder.rows(root)
    return [(Path(row.where).relative_to(root).as_posix(), row.problem or dict(row.values)) for row in rows]


def test_files_of_one_name_are_a_sample(tmp_path: Path) -> None:
    put(tmp_path, b_wav=b"x", b_txt=b"\xef\xbb\xbfopen the door\n", a_PNG=b"x", notes_md=b"", Thumbs_db=b"")
    assert find_reader(tmp_path) is folder
    assert read(tmp_path) == [("a", {"image": "a.PNG"}), ("b", {"text": "open the door", "audio": "b.wav"})]
    assert folder.files(tmp_path) == [tmp_path / "a.PNG", tmp_path / "b.txt", tmp_path / "b.wav"]


def test_a_subfolder_is_the_label(tmp_path: Path) -> None:
    put(tmp_path, dog__2_jpg=b"x", cat__1_jpg=b"x", cat__deep__0_jpg=b"x")
    put(tmp_path / ".cache", dog__2_jpg=b"x")
    assert read(tmp_path) == [
        ("cat/1", {"label": "cat", "image": "cat/1.jpg"}), ("cat/deep/0", {"label": "cat", "image": "cat/deep/0.jpg"}),
        ("dog/2", {"label": "dog", "image": "dog/2.jpg"})]


def test_samples_that_cannot_be_used(tmp_path: Path) -> None:
    put(tmp_path, a_jpg=b"x", a_png=b"x", b_txt=b"alone", c_wav=b"x", c_txt=b"caf\xe9")
    assert read(tmp_path) == [
        ("a", "is there twice, as 'a.jpg' and 'a.png': rename or remove one"),
        ("b", "has a text without its picture or sound"),
        ("c", "has a text that is not UTF-8 (unexpected end of data at byte 3): save it as UTF-8")]


def test_nothing_to_read(tmp_path: Path) -> None:
    put(tmp_path, a_txt=b"a text alone is no sample", b_pdf=b"")
    with pytest.raises(CalibrationError, match="holds no samples that are read: expected a folder of pictures"):
        find_reader(tmp_path)
    with pytest.raises(CalibrationError, match="gone does not exist"):
        find_reader(tmp_path / "gone")
