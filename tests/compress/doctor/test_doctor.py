"""The whole: a healthy model, one that cannot be traced, what is shown and what is kept to the terminal, exit codes."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import compress
from compress.cli import cli
from compress.doctor import SEVERITIES, Diagnosis, Finding
from compress.doctor.examinations import EXAMINATIONS
from compress.doctor.table import table
from tests.compress.doctor.networks import Branches, Healthy

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
SICK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x)
        if y.sum() > 0:
            return y * 2
        return y

def get_model():
    torch.manual_seed(0)
    return Net()

def get_args():
    return {"x": torch.ones(2, 4)}
"""


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compress", "doctor", *arguments], cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )  # fmt: skip


def _invoke(*arguments: str) -> Result:
    """The same in this process, which has torch already."""
    return CliRunner().invoke(cli, ["doctor", *arguments])


def _text(diagnosis: Diagnosis) -> str:
    from rich.console import Console

    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(diagnosis), highlight=False, markup=False)
    return console.export_text()


def test_the_files_are_the_examinations() -> None:
    package = sys.modules["compress.doctor.examinations"]
    files = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")} - {"__init__"}
    assert files == set(EXAMINATIONS)
    assert len(EXAMINATIONS) == len(set(EXAMINATIONS))


def test_the_page_lists_every_examination() -> None:
    text = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(EXAMINATIONS)


def test_nothing_blocks_the_small_model_and_nothing_is_written(small_files: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_files.rglob("*")}
    diagnosis = compress.doctor(small_files / "model.pt", factory="small_recipe:Tiny", data=small_files / "calibration")
    assert not diagnosis.blocked
    assert diagnosis.targets == ("openvino-cpu", "onnxruntime-cpu")
    parameters = 6 * 32 + 32 + 32 * 16 + 16 + 10 * 16 + 32 * 32 + 32 + 32 * 3 + 3
    assert diagnosis.facts["parameters"] == parameters
    assert diagnosis.facts["weights_bytes"] == 4 * parameters
    assert diagnosis.of("pruning")[0].what.startswith("prune could take from")
    assert "Nothing blocks it on openvino-cpu, onnxruntime-cpu." in _text(diagnosis)
    assert {path: path.stat().st_mtime_ns for path in small_files.rglob("*")} == before


def test_a_script_that_cannot_be_traced_is_examined_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sick.py").write_text(SICK)
    done = _run("sick.py", "--target", "onnxruntime-cpu", "--quiet", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "sick.py:12: if y.sum() > 0:" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sick.py"]


def test_the_record_holds_no_line_of_the_users_code(tmp_path: Path) -> None:
    (tmp_path / "sick.py").write_text(SICK)
    done = _invoke(str(tmp_path / "sick.py"), "--target", "onnxruntime-cpu", "--json")
    assert done.exit_code == 1, done.stderr
    record = json.loads(done.stdout)
    assert (record["format"], record["version"], record["blocked"]) == ("compress.diagnosis", 1, True)
    assert record["findings"][0]["examination"] == "untraceable"
    assert "sick.py" not in done.stdout
    assert "y.sum()" not in done.stdout
    assert str(tmp_path) not in done.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise ValueError('no weights here')", "fails before there is a model: ValueError: no weights here"),
        ("x = 1", "has no get_model()"),
    ],
)
def test_what_is_no_model_is_refused_with_exit_code_2(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "no.py").write_text(content)
    done = _invoke(str(tmp_path / "no.py"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_refusals_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(compress.CompressError, match=r"nothing\.pt does not exist"):
        compress.doctor(tmp_path / "nothing.pt")
    with pytest.raises(compress.CompressError, match="Healthy comes without an example"):
        compress.doctor(Healthy())
    with pytest.raises(compress.CompressError, match="unknown target 'toaster'"):
        compress.doctor(Healthy(), ["toaster"], example={"x": X})
    with pytest.raises(compress.CompressError, match="severity 'bad' of a finding is unknown"):
        Finding(examination="x", severity="bad", what="y")  # type: ignore[arg-type]


def test_the_worst_comes_first_and_the_table_fits_a_hundred_columns() -> None:
    diagnosis = compress.doctor(Branches(), ["onnxruntime-cpu"], example={"x": X})
    order = [SEVERITIES.index(finding.severity) for finding in diagnosis.findings]
    assert order == sorted(order)
    text = _text(diagnosis)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "torch.where(" in text
    assert "networks.py:" in text


def test_no_targets_name_is_cut() -> None:
    found = Finding(examination="x", severity="note", what="long " * 40, concerns=("jetson-orin-nano",))
    diagnosis = Diagnosis(name="m", targets=("rtx",), findings=(found,), facts={"parameters": 1, "weights_bytes": 4})
    assert "jetson-orin-nano" in _text(diagnosis)


def test_a_module_and_torchs_logger_are_left_as_they_were() -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level, logger.propagate, list(logger.handlers)
    module = Healthy()
    assert module.training
    seen: list[str] = []
    diagnosis = compress.doctor(
        module, ["onnxruntime-cpu"], example={"x": X}, progress=lambda done, of, name: seen.append(name)
    )
    assert not diagnosis.blocked
    assert module.training
    assert module.down.training
    assert seen == [name.replace("_", " ") for name in EXAMINATIONS]
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
