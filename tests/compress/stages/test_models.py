"""The stage distill in a run: whom the student learns from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import compress
from compress.errors import CompressError
from compress.modelfile import read_model, write_model
from compress.pipeline import RunResult
from compress.weights import with_weights


def run(small: ModuleType, files: Path, folder: Path, teacher: str | None) -> RunResult:
    settings = {"epochs": 2, "batch_size": 32, **({} if teacher is None else {"teacher": teacher})}
    recipe = small.write_recipe(files, f"{Path(str(teacher)).stem}.yaml", stages=[{"distill": settings}], factory=None)
    return compress.run(recipe, output=folder / "out")


def distilled(result: RunResult) -> Any:
    return next(stage for stage in result.record["stages"] if stage["stage"] == "distill")


@pytest.fixture
def files(small_files: Path, tmp_path: Path) -> Path:
    """The files of the small recipe, and a teacher whose answers are another's."""
    folder = tmp_path / "files"
    shutil.copytree(small_files, folder)
    model = read_model(folder / "model.pt")
    doubled = {name: 2 * value for name, value in model.weights.items() if name.startswith("head.2")}
    write_model(with_weights(model, doubled), folder / "teacher.pt")
    return folder


def test_the_teacher_of_a_recipe_is_its_model_or_another_file(
    small: ModuleType, files: Path, tmp_path: Path
) -> None:
    own = distilled(run(small, files, tmp_path, None))
    assert own["summary"]["history"][0]["loss"] < 1e-9          # the student is its own teacher
    other = distilled(run(small, files, tmp_path, "teacher.pt"))
    assert other["summary"]["history"][0]["loss"] > 1e-4
    assert other["settings"]["teacher"] == "teacher.pt"
    assert run(small, files, tmp_path, "teacher.pt").done == 0
    model = read_model(files / "teacher.pt")
    write_model(with_weights(model, {"head.2.bias": torch.ones(3)}), files / "teacher.pt")
    assert run(small, files, tmp_path, "teacher.pt").done > 0   # by its content, not by its name


def test_a_teacher_that_is_not_there_is_refused_at_once(small: ModuleType, files: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"none.yaml: the teacher .*none.pt of a distill stage does not exist"):
        run(small, files, tmp_path, "none.pt")
