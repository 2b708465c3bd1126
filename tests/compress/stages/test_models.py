"""The stages from model to model in a run: whom a student learns from, what pruning is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import calibration
import compress
from compress.described import described
from compress.errors import CompressError
from compress.evaluate import evaluate
from compress.ladder import torch_runner
from compress.metrics import get_metric
from compress.modelfile import read_model, write_model
from compress.pipeline import RunResult
from compress.quantize.sensitivity import spread
from compress.weights import with_weights
from compress.zoo import digits_vqa
from compress.zoo.digits_questions import PROCESSING
from runtimes.processing.processor import Processor
from tests.compress.prune.test_vocabulary import SMALL


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


def pruned(result: RunResult) -> Any:
    return next(stage for stage in result.record["stages"] if stage["stage"] == "prune")


def test_sensitivity_of_a_prune_stage_is_told_by_the_recipes_metric(
    small: ModuleType, small_files: Path, tmp_path: Path
) -> None:
    asked = {"macs": 0.6, "samples": 32, "sensitivity": True}
    recipe = small.write_recipe(small_files, "curves.yaml", stages=[{"prune": asked}])
    result = compress.run(recipe, output=tmp_path / "out")
    found = pruned(result)["summary"]["sensitivity"]
    model = read_model(small_files / "model.pt")
    validation = spread(calibration.open_set(small_files / "validation", model.inputs), 32)
    whole = evaluate(torch_runner(model), validation, get_metric("accuracy", described(model)))
    assert (found["metric"], found["samples"], found["whole"]) == ("accuracy", 32, whole.value)
    assert [part["name"] for part in found["parts"] if part["kind"] == "component"] == ["seen", "head"]
    assert [part["name"] for part in found["parts"] if part["kind"] == "group"] == ["seen.0", "seen.2", "head.0"]
    first, _, last = next(part for part in found["parts"] if part["name"] == "head.0")["points"]
    # 32 x (32 + 3) of 6 x 32 + 32 x 16 + 32 x 35 MACs are the head's
    assert (first["macs"], last["macs"]) == pytest.approx((1 - 0.25 * 1120 / 1824, 1 - 0.75 * 1120 / 1824))
    assert last["drop"]["n"] == 32
    assert 'id="pruned-parts"' in (tmp_path / "out/report.html").read_text()
    # what it is told by is among what the stage was made from
    assert compress.run(recipe, output=tmp_path / "out").done == 0
    other = small.write_recipe(small_files, "other.yaml", stages=[{"prune": asked}], metric="f1")
    again = pruned(compress.run(other, output=tmp_path / "out"))
    assert again["reused"] is False
    assert again["summary"]["sensitivity"]["metric"] == "f1"


def test_a_corpus_says_which_words_stay(tmp_path: Path) -> None:
    """The data asks in 4 words, the corpus in 2 others; padding stays, and all that go have one row."""
    torch.manual_seed(0)
    compress.save(
        digits_vqa.build(**SMALL), tmp_path / "model.pt", factory="compress.zoo.digits_vqa:build",
        factory_kwargs=SMALL, processing=PROCESSING,
        example={"image": np.zeros((2, 1, 8, 8), np.float32), "question": np.arange(24).reshape(2, 12)})
    model = read_model(tmp_path / "model.pt")
    image = np.zeros((8, 8), np.uint8)
    feed = Processor(described(model)).feed({"image": [image] * 2, "question": ["is it even ?"] * 2})
    for name in ("calibration", "validation"):
        calibration.write(tmp_path / name, feed)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("is it odd ?\n")

    def rows(**settings: Any) -> int:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({
            "version": 1, "model": "model.pt", "data": {name: name for name in ("calibration", "validation")},
            "target": "openvino-cpu", "stages": [{"prune": {"vocabulary": "used", **settings}}]}))
        (one,) = pruned(compress.run(tmp_path / "recipe.yaml"))["summary"]["vocabularies"]
        after: int = one["after"]
        return after

    assert rows() == 1 + 4 + 1
    assert rows(corpus="texts") == 1 + 5 + 1
    (tmp_path / "texts/b.txt").write_text("is it prime ?\n")
    assert rows(corpus="texts") == 1 + 6 + 1          # what the stage was made from is the texts, not their name
    with pytest.raises(CompressError, match=r"recipe.yaml: the corpus .*none.txt of the prune stage does not exist"):
        rows(corpus="none.txt")
