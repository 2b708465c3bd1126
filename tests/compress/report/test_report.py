import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.report import ReportPaths, read_record, report


def test_the_record_comes_back_as_it_was(example: dict[str, Any], tmp_path: Path) -> None:
    paths = report(example, tmp_path / "a" / "b")
    assert paths == ReportPaths(json=tmp_path / "a/b/report.json", html=tmp_path / "a/b/report.html")
    assert read_record(paths.json) == read_record(tmp_path / "a/b") == example
    assert sorted(path.name for path in paths.json.parent.iterdir()) == ["report.html", "report.json"]


def test_the_same_record_gives_the_same_bytes(example: dict[str, Any], tmp_path: Path) -> None:
    first = report(example, tmp_path / "1")
    second = report(read_record(first.json), tmp_path / "2")
    assert first.json.read_bytes() == second.json.read_bytes()
    assert first.html.read_bytes() == second.html.read_bytes()


def test_a_bad_record_leaves_what_was_there(example: dict[str, Any], tmp_path: Path) -> None:
    paths = report(example, tmp_path)
    before = paths.html.read_bytes()
    with pytest.raises(CompressError, match="stages"):
        report({**example, "stages": {}}, tmp_path)
    assert paths.html.read_bytes() == before
    assert json.loads(paths.json.read_bytes()) == example


def test_a_folder_that_cannot_be_written(example: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressError, match=r"cannot be written to .*file"):
        report(example, tmp_path / "file")
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(CompressError, match="cannot be written"):
        report(example, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'jinja2', 'plotly', 'rich', 'torch', 'onnx', 'openvino', 'onnxruntime', 'yaml'}"
    code = f"import sys, compress.report; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
