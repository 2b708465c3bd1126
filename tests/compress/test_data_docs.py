"""docs/data.md: its commands, its Python and its recipe run, in the order they stand in."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import compress
from calibration import readers
from compress.cli import cli
from tests.compress import photos

TEXT = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_every_form_is_listed() -> None:
    rows = re.findall(r"^\| (\w+) \|", TEXT, re.MULTILINE)
    assert sorted(rows[1:]) == sorted(reader.FORM for reader in readers._READERS)


def test_everything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos.write_model(Path("model.pt"))
    photos.write_speech_model(Path("speech.pt"))
    photos.write_photos(Path("photos"))
    photos.write_photos(Path("renamed"), header="photo,asked,answer")
    (photos.write_photos(Path("damaged")) / "001.png").write_bytes(b"")
    photos.write_speech(Path("speech"))
    photos.write_shards(Path("shards"))
    photos.write_tables(Path("train.parquet"), Path("saved/train"))
    said = []
    for language, block in FENCES:
        if language == "python":
            exec(block, {})     # the page's own words
        elif language == "yaml":
            Path("recipe.yaml").write_text(block)
            assert compress.run(Path("recipe.yaml")).done == 4
        else:
            for line in block.splitlines():
                result = CliRunner().invoke(cli, shlex.split(line)[1:])
                assert result.exit_code == 0, (line, result.output)
                said += re.findall(r"^\S+: \d+ samples .*", result.stdout, re.MULTILINE)
    counted = [("captions", "12"), ("captions", "12"), ("webdataset", "4"), ("parquet", "5"), ("arrow", "5"),
               ("folder", "2"), ("captions", "12"), ("captions", "6"), ("captions", "11")]
    assert [re.findall(r"(\d+) samples \((\w+)\)", line)[0][::-1] for line in said] == counted
    assert said[-1].endswith(", 1 left out")
    source = json.loads(Path("calibration/dataset.json").read_text())["source"]
    assert set(source) == {"form", "sha256", "processing_sha256", "samples", "batch", "column", "skip_bad", "skipped"}
