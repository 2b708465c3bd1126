"""docs/calibration.md: its commands run, and it lists every finding and every key of the record."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import calibration
import calibration.coverage
from compress.cli import cli
from compress.modelfile import write_model
from compress.quantize.collect import Collector
from compress.quantize.coverage import cover
from tests.compress.quantize.networks import TwoReaders, make

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/calibration.md").read_text(encoding="utf-8")
(COMMANDS,) = re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def told(line: str) -> dict[str, object]:
    done = CliRunner().invoke(cli, [*shlex.split(line)[1:], "--json", "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record: dict[str, object] = json.loads(done.output)
    return record


def test_the_commands_run_and_the_second_runs_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(make(TwoReaders), tmp_path / "model.pt")
    calibration.write("calibration", {"x": np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)})
    first, second = COMMANDS.splitlines()
    record = told(first)
    assert record["samples"] == 300
    (key,) = Path("kept").iterdir()
    assert key.suffix == ".json"
    monkeypatch.setattr(Collector, "__call__", None)
    assert told(second)["ranges"] == "mse"
    section = record["coverage"]
    assert isinstance(section, dict)
    keys = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert [key for key in keys if key in section] == list(section)


def test_its_figures_are_the_benchmarks() -> None:
    rows = json.loads((ROOT / "benchmarks/results/collection.json").read_text(encoding="utf-8"))["rows"]
    told_of = {name: f"{row['ratio']['ratio']:.2f} times" for name, row in rows.items()}
    assert sorted(re.findall(r"\d\.\d\d times", TEXT)) == sorted(told_of.values())
    assert max(row["memory"]["growth"] for row in rows.values() if "memory" in row) <= 0.05


def test_every_finding_is_listed() -> None:
    sources = inspect.getsource(calibration.coverage) + Path(inspect.getfile(cover)).read_text(encoding="utf-8")
    kinds = set(re.findall(r'Finding\(\s*kind="([\w ]+)"', sources))
    table = TEXT[TEXT.index("| kind of finding"):]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {kind for row in rows for kind in re.findall(r"`([\w ]+)`", row)} == kinds
