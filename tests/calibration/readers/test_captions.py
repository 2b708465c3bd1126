from __future__ import annotations

from pathlib import Path

import pytest

from calibration import CalibrationError
from calibration.readers import captions, find_reader


def read(path: Path) -> list[tuple[str, object]]:
    """Where each row is, from the folder on, and its values or its problem."""
    return [(row.where.rpartition("/")[2], row.problem or dict(row.values)) for row in captions.rows(path)]


def table(folder: Path, text: str | bytes, name: str = "captions.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_rows_in_their_order(tmp_path: Path) -> None:
    text = '\ufefffile,text,label\r\nb.png,"a cat, asleep",1\r\n\r\na.png,"two\nlines",0\r\nc.png,"a ""dog""",0\r\n'
    table(tmp_path, text)
    assert find_reader(tmp_path) is captions
    assert read(tmp_path) == [
        ("captions.csv, line 2", {"file": "b.png", "text": "a cat, asleep", "label": "1"}),
        ("captions.csv, line 4", {"file": "a.png", "text": "two\nlines", "label": "0"}),
        ("captions.csv, line 6", {"file": "c.png", "text": 'a "dog"', "label": "0"})]
    assert {row.folder for row in captions.rows(tmp_path)} == {tmp_path}


def test_a_separator_that_only_unicode_has_ends_no_line(tmp_path: Path) -> None:
    assert read(table(tmp_path, "file,text\na.png,one\u2028two\n")) == [
        ("captions.csv, line 2", {"file": "a.png", "text": "one\u2028two"})]


def test_tsv(tmp_path: Path) -> None:
    assert read(table(tmp_path, "path\tsentence\na.wav\tyes, please\n", "clips.tsv")) == [
        ("clips.tsv, line 2", {"path": "a.wav", "sentence": "yes, please"})]


def test_a_csv_of_semicolons(tmp_path: Path) -> None:
    assert read(table(tmp_path, 'file;text\na.png;"yes, please; now"\nb.png;no\n')) == [
        ("captions.csv, line 2", {"file": "a.png", "text": "yes, please; now"}),
        ("captions.csv, line 3", {"file": "b.png", "text": "no"})]


def test_jsonl_keeps_types(tmp_path: Path) -> None:
    text = '{"file": "a.png", "text": "é", "label": 1, "box": [1, 2.5]}\n\n{"file": "b.png"}\n'
    assert read(table(tmp_path, text, "metadata.jsonl")) == [
        ("metadata.jsonl, line 1", {"file": "a.png", "text": "é", "label": 1, "box": [1, 2.5]}),
        ("metadata.jsonl, line 3", {"file": "b.png"})]


def test_the_files_are_the_table_and_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("pictures/a.png", "b.png", "not named.png"):
        (tmp_path / name).write_bytes(b"x")
    path = table(tmp_path, "file,text\npictures/a.png,x\nb.png,b.png\ngone.png," + "long " * 2000 + "\n")
    assert captions.files(tmp_path) == [path, tmp_path / "b.png", tmp_path / "pictures/a.png"]


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    text = "file,text\na.png,x\nb.png,y,z\na.png,x\na.png,another caption\n"
    assert read(table(tmp_path, text)) == [
        ("captions.csv, line 2", {"file": "a.png", "text": "x"}),
        ("captions.csv, line 3", "has 3 cells, expected 2: quote texts that hold the separator"),
        ("captions.csv, line 4", "is the same as line 2"),
        ("captions.csv, line 5", {"file": "a.png", "text": "another caption"})]


@pytest.mark.parametrize(("line", "problem"), [
    ('{"file": ', "is no JSON object"), ("[1]", "is a JSON list, expected an object"),
    ('{"a": 1, "a": 2}', "the key 'a' stands twice"), ('{"a": NaN}', "NaN is no JSON"), ("[" * 100_000, "is no JSON"),
], ids=["cut", "list", "twice", "nan", "deep"])
def test_lines_that_are_no_object(tmp_path: Path, line: str, problem: str) -> None:
    (_, found), (_, good) = read(table(tmp_path, f'{line}\n{{"file": "a.png"}}\n', "x.jsonl"))
    assert problem in str(found)
    assert good == {"file": "a.png"}


@pytest.mark.parametrize(("text", "message"), [
    (b"file,text\na.png,caf\xe9\n", r"captions\.csv, line 2: the byte 0xe9 is not UTF-8: save the file as UTF-8"),
    (b"file,text,file\n", r"captions\.csv has the column 'file' twice"),
    (b"file,\n", r"captions\.csv has a column without a name"),
    (b"", r"captions\.csv is empty: its first line names the columns"),
    (b'file,text\na.png,"open\n', r"captions\.csv, line \d+: is no CSV \(unexpected end of data\)"),
    (b'file,text\na.png,"a"b\n', r"captions\.csv, line 2: is no CSV \(',' expected after '\"'\)"),
], ids=["latin-1", "column twice", "nameless", "empty", "open quote", "stray quote"])
def test_tables_that_cannot_be_read(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read(table(tmp_path, text))


def test_two_tables(tmp_path: Path) -> None:
    table(tmp_path, "file\n", "a.csv")
    table(tmp_path, "", "b.jsonl")
    with pytest.raises(CalibrationError, match=r"several tables, 'a\.csv' and 'b\.jsonl': name the one to read"):
        read(tmp_path)
    assert read(tmp_path / "a.csv") == []
