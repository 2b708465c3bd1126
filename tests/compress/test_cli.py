"""Each verb, on what a whole run made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import runtimes
from compress.cli import cli
from compress.distill import loop
from compress.modelfile import read_model
from compress.quantize.collect import Collector
from compress.quantize.mixer import Mixer
from compress.quantize.probe import Probe
from compress.quantize.rig import TIMING
from tests.compress.command import call, from_run, refused, told

Copy = Callable[[Path], Path]
VERBS = ("bench", "budget", "bundle", "data", "demo", "distill", "doctor", "eval", "export", "inspect", "parity",
         "prune", "quantize", "report", "run", "sensitivity", "targets")  # fmt: skip


def test_help() -> None:
    text = call("--help").stdout
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert sorted(cli.commands) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str) -> None:
    result = call(verb, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: cli {verb} [OPTIONS]")
    for option in cli.commands[verb].params:
        if isinstance(option, click.Option):
            assert option.help, f"{verb}: {option.name} has no help"


def test_inspect(finished: Path, int8: Path) -> None:
    found = told("inspect", finished / "model.pt", "--factory", "small_recipe:Tiny")
    assert (found["format"], found["name"]) == ("compress.inspection", "tiny")
    assert [entry["name"] for entry in found["facts"]["inputs"]] == ["picture", "word"]
    # seen: 6*32 + 32*16 weights and 48 biases; heard: 10*16; head: 32*32 + 32*3 and 35 biases
    assert {name: cost["parameters"] for name, cost in found["facts"]["components"].items()} == {
        "seen": 752, "heard": 160, "head": 1155}  # fmt: skip
    assert {name: cost["macs"] for name, cost in found["facts"]["components"].items()} == {
        "seen": 704, "heard": 0, "head": 1120}  # fmt: skip
    assert found["prunable"]
    text = call("inspect", int8).stdout
    assert "quantized: scheme " in text
    assert "prune the float model it was made from" in text


def test_prune(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    found = told("prune", finished / "model.pt", "--data", finished / "calibration", "--macs", "0.6", "--output", path,
                 "--factory", "small_recipe:Tiny")  # fmt: skip
    assert found["output"] == str(path)
    assert found["macs_before"] == 704 + 1120
    assert found["macs_after"] <= 0.6 * found["macs_before"]
    assert found["gave_nothing"] == ["heard"]
    text = call("prune", finished / "model.pt", "--data", finished / "calibration", "--macs", "0.6", "--output", path,
                "--factory", "small_recipe:Tiny").stdout  # fmt: skip
    assert "\nas large as before: heard; --json says why" in text
    told("inspect", path)


def test_distill(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    student = Path(shutil.copy(from_run(finished, "prune"), tmp_path / "student.pt"))
    command = ("distill", student, "--teacher", finished / "model.pt", "--data", finished / "train", "--validation",
               finished / "validation", "--epochs", 1, "--component-weights", "seen=2", "--component-weights",
               "heard=0.5", "--scratch", tmp_path / "kept")  # fmt: skip
    found = told(*command)
    assert (tmp_path / "kept/distill.checkpoint").is_file()
    assert told(*command)["history"] == found["history"]        # seconds and all: it was done
    told(*command[:-2])
    assert not (tmp_path / "student.distilled.pt.scratch").exists()
    assert found["output"] == str(tmp_path / "student.distilled.pt")
    assert found["after"] >= found["before"]
    assert read_model(tmp_path / "student.distilled.pt").name == "tiny"


def test_a_distillation_that_is_interrupted_says_where_its_checkpoint_is(
    finished: Path, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Path(shutil.copy(from_run(finished, "prune"), tmp_path / "student.pt"))
    command = ("distill", student, "--teacher", finished / "model.pt", "--data", finished / "train", "--epochs", 3)
    whole = told(*command, "--output", tmp_path / "whole.pt")
    finish, done = loop._finish_epoch, []

    def once_more(*given: Any) -> None:
        finish(*given)
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_finish_epoch", once_more)
    result = call(*command)
    assert result.exit_code == 130
    kept = tmp_path / "student.distilled.pt.scratch"
    assert f"the same command goes on from the last checkpoint, in {kept}" in result.stderr.replace("\n", "")
    assert (kept / "distill.checkpoint").is_file()
    monkeypatch.undo()
    again = told(*command)
    assert len(done) == 3
    assert again["history"][:2] != whole["history"][:2]         # the seconds are of the run that was ended
    assert [entry["loss"] for entry in again["history"]] == [entry["loss"] for entry in whole["history"]]
    assert not kept.exists()


def test_quantize_keeps_its_statistics(finished: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(shutil.copy(finished / "model.pt", copy_of(finished / "calibration").parent))
    command = ("quantize", model, "--calibration", finished / "calibration", "--statistics", model.parent / "kept")
    assert call(*command).exit_code == 0
    monkeypatch.setattr(Collector, "__call__", None)     # another pass would fail
    assert call(*command, "--ranges", "minmax").exit_code == 0
    assert len(list((model.parent / "kept").iterdir())) == 1


def test_quantize(finished: Path, copy_of: Copy) -> None:
    model = Path(shutil.copy(finished / "model.pt", copy_of(finished / "calibration").parent))
    result = call("quantize", model, "--calibration", finished / "calibration", "--target", "openvino-cpu")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{model.with_suffix('.int8.pt')}: ")
    assert "operators in int8, " in result.stdout
    assert "96 calibration samples" in result.stdout
    assert "\ncalibration: layer" in result.stdout      # what it saw few values of
    (left,) = re.findall(r"\nin float: (.*)", result.stdout)
    assert re.match(r"1 embedding \(\w+\): a look-up multiplies nothing: int8 would save memory", left)
    assert result.stderr.startswith("done quantize (")
    quantization = read_model(model.with_suffix(".int8.pt")).quantization
    assert quantization is not None
    assert quantization.settings["samples"] == 96


@pytest.mark.slow
def test_quantize_within_a_budget(finished: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIMING, "warmup_s", 0.0)
    monkeypatch.setitem(TIMING, "duration_s", 0.05)
    model = Path(shutil.copy(finished / "model.pt", copy_of(finished / "calibration").parent))
    found = told("quantize", model, "--calibration", finished / "calibration", "--target", "onnxruntime-cpu",
                 "--max-drop", 0.2, "--validation", finished / "validation")  # fmt: skip
    assert found["output"] == str(model.with_suffix(".int8.pt"))
    budget = found["budget"]
    assert (budget["outcome"], budget["timed"], budget["max_drop"]) == ("met", ["onnxruntime-cpu"], 0.2)
    kept = read_model(model.with_suffix(".int8.pt")).quantization
    assert kept is not None
    assert set(kept.keep_float) == {part["name"] for part in budget["parts"] if part["choice"] == "float"}
    line = refused("quantize", model, "--calibration", finished / "calibration", "--max-drop", 0.2)
    assert line == "compress: --max-drop and --validation go together: give both, or neither"
    line = refused("quantize", model, "--calibration", finished / "calibration", "--max-drop", 0.2, "--validation",
                   finished / "validation", "--metric", "recal")  # fmt: skip
    assert line.startswith("compress: unknown metric 'recal': did you mean 'recall'?")


def test_budget_of_a_quantized_model(int8: Path, finished: Path, tmp_path: Path) -> None:
    command = ("budget", int8, "--validation", finished / "validation", "--target", "openvino-cpu", "--max-drop", 0.2,
               "--when", "needed", "--reference", finished / "model.pt", "--output", tmp_path / "mixed.pt")  # fmt: skip
    result = call(*command)
    assert result.exit_code == 0
    assert "as quantized" in result.stdout
    assert f"{tmp_path}/mixed.pt: 0 of 4 parts in float" in " ".join(result.stdout.split())
    assert read_model(tmp_path / "mixed.pt").quantization == read_model(int8).quantization


def test_an_interrupted_budget_writes_the_best_so_far(
    int8: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Mixer, stack: object, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mixer, "_open", stop)
    result = call("budget", int8, "--validation", finished / "validation", "--target", "openvino-cpu",
                  "--output", tmp_path / "mixed.pt")  # fmt: skip
    assert result.exit_code == 130
    assert "Interrupted: the best so far." in result.stdout
    assert (tmp_path / "mixed.pt").is_file()


def test_sensitivity(int8: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data", finished / "validation")
    found = told("sensitivity", int8, *data, "--metric", "accuracy", "--by", "layer", "--samples", 64)
    assert (found["format"], found["metric"], found["samples"]) == ("compress.sensitivity", "accuracy", 64)
    assert [part["name"] for part in found["parts"]] == ["seen.0", "seen.2", "head.0", "head.2"]
    result = call("sensitivity", finished / "model.pt", *data, "--calibration", finished / "calibration")
    assert result.exit_code == 0
    assert "alone in int8" in result.stdout
    assert "all in int8: " in result.stdout
    line = refused("sensitivity", int8, *data, "--calibration", finished / "calibration")
    assert line == "compress: model 'tiny' is quantized already: leave --calibration out"
    assert refused("sensitivity", finished / "model.pt", *data) == (
        "compress: model 'tiny' is not quantized: run compress quantize first")

    def stop(self: Probe, paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Probe, "effect", stop)
    assert call("sensitivity", int8, *data).exit_code == 130


def test_export_and_its_parity(finished: Path, int8: Path, tmp_path: Path) -> None:
    found = told("export", int8, "--target", "openvino-cpu", "--output", tmp_path / "engine")
    assert (found["target"], found["precision"], found["state"]) == ("openvino-cpu", "int8", "runnable")
    engine = runtimes.read_bundle(finished / "out/bundle").graphs["forward"].engines["openvino-cpu"]
    assert found["digest"] == engine.digest  # the very engine that the recipe made
    found = told("parity", int8, "--data", finished / "validation", "--target", "onnxruntime-cpu", "--samples", 16)
    assert [step["name"].split(" x86")[0] for step in found["steps"]] == [
        "torch fp32", "torch int8", "onnx fp32", "onnxruntime-cpu fp32", "onnx int8",
        "onnxruntime-cpu int8"]  # fmt: skip


def test_eval_of_a_model_and_of_a_bundle(finished: Path, int8: Path) -> None:
    record = json.loads((finished / "out/report.json").read_text())
    data = ("--data", finished / "validation")
    rows = {(row["role"], row["target"]): row for row in record["bench"]["rows"]}
    row = rows["shipped", "onnxruntime-cpu"]
    found = told("eval", finished / "out/bundle", *data, "--target", "onnxruntime-cpu")
    assert found["value"] == pytest.approx(row["accuracy"]["value"])
    assert found["n"] == 128
    assert told("eval", int8, *data)["value"] == pytest.approx(found["value"], abs=0.03)
    assert call("eval", finished / "model.pt", *data).stdout.startswith("accuracy 0.")


def test_bench(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    flags = ["--no-peaks", "--output", str(tmp_path / "bench.json")]  # others look at what the run left
    for key, value in small.BENCH.items():
        flags += [] if key == "peaks" else [f"--{key.replace('_', '-')}", value]
    found = told("bench", finished / "out/bundle", "--target", "onnxruntime-cpu", *flags)
    assert [(row["role"], row["precision"]) for row in found["rows"]] == [
        ("original", "fp32"), ("control", "fp32"), ("shipped", "int8")]  # fmt: skip
    assert all(row["latency_ms"]["p50"] > 0 for row in found["rows"])


def test_bundle(finished: Path, tmp_path: Path) -> None:
    found = told("bundle", "create", finished / "model.pt", "--target", "onnxruntime-cpu",
                 "--data", finished / "validation", "--output", tmp_path / "bundle")  # fmt: skip
    assert found["targets"] == ["onnxruntime-cpu"]
    assert runtimes.read_bundle(tmp_path / "bundle").digest == found["digest"]


def test_report(finished: Path, tmp_path: Path) -> None:
    written = json.loads((finished / "out/report.json").read_text())
    assert told("report", finished / "out/report.json", "--output", tmp_path) == written
    assert (tmp_path / "report.html").read_bytes() == (finished / "out/report.html").read_bytes()
    assert "openvino-cpu" in call("report", finished / "out", "--output", tmp_path).stdout


def test_targets() -> None:
    found = told("targets")
    assert {"openvino-cpu", "onnxruntime-cpu", "rpi5", "jetson-orin-nano", "rtx"} <= {row["name"] for row in found}
    assert "openvino-cpu" in call("targets").stdout


def test_run(finished: Path, copy_of: Copy) -> None:
    folder = copy_of(finished)
    result = call("run", folder / "recipe.yaml", "--json")
    record = json.loads(result.stdout)
    assert record["command"] == f"compress run {folder / 'recipe.yaml'}"
    assert record == json.loads((folder / "out/report.json").read_text())
    last = result.stderr.splitlines()[-1]
    assert last.startswith("0 stages done, ")
    assert last.endswith(f" reused; report: {folder / 'out/report.html'}")
    told("run", folder / "recipe.yaml", "--output", folder / "out")
