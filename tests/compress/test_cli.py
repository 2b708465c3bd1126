from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import calibration
import runtimes
from compress.cli import cli
from compress.distill import loop
from compress.modelfile import read_model, write_model
from compress.quantize.collect import Collector
from compress.quantize.mixer import Mixer
from compress.quantize.probe import Probe
from compress.quantize.rig import TIMING

Copy = Callable[[Path], Path]
VERBS = ("bench", "budget", "bundle", "data", "demo", "distill", "doctor", "eval", "export", "inspect", "parity",
         "prune", "quantize", "report", "run", "sensitivity", "targets")  # fmt: skip


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(*arguments: object) -> Any:
    """What a command that worked printed as JSON; nothing else is on either stream."""
    result = call(*arguments, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The one line of a command that refused its input."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("\n")
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("done ")]
    assert line.startswith("compress: ")
    return line


def from_run(small: ModuleType, folder: Path, stage: str, at: int = 0) -> Path:
    """The model file that a stage of the finished run made."""
    report = json.loads((folder / "out/report.json").read_text())
    digest = [entry["digest"] for entry in report["stages"] if entry["stage"] == stage][at]
    return folder / "out/store/objects" / digest / "model.pt"


@pytest.fixture(scope="session")
def int8(finished: Path, small: ModuleType) -> Path:
    return from_run(small, finished, "distill", 1)


# --- each verb --------------------------------------------------------------------------------------------------------


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
    student = Path(shutil.copy(from_run(small, finished, "prune"), tmp_path / "student.pt"))
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
    student = Path(shutil.copy(from_run(small, finished, "prune"), tmp_path / "student.pt"))
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


# --- as a process -----------------------------------------------------------------------------------------------------


def process(small: ModuleType, *arguments: object, block: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``python -m compress`` with the packages ``block`` made impossible to import."""
    code = f"import sys; sys.modules.update(dict.fromkeys({block!r})); from compress.__main__ import main; main()"
    command = [sys.executable, *(("-c", code) if block else ("-m", "compress")), *map(str, arguments)]
    return subprocess.run(command, env=small.ENVIRONMENT, capture_output=True, text=True, check=False)


def test_a_process_keeps_results_and_progress_apart(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    flags = ("--calibration", finished / "calibration", "--target", "openvino-cpu", "--output", tmp_path / "m.pt")
    result = process(small, "quantize", finished / "model.pt", *flags, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["output"] == str(tmp_path / "m.pt")
    assert [line.split(")")[0] for line in result.stderr.splitlines()] == ["done quantize (x86-vnni"]


@pytest.mark.slow
def test_a_quiet_process_prints_nothing_but_the_result(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    target = ("--target", "onnxruntime-cpu", "--data", finished / "validation", "--output", tmp_path / "bundle")
    result = process(small, "bundle", "create", finished / "model.pt", *target, "--json", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["targets"] == ["onnxruntime-cpu"]


@pytest.mark.parametrize("package", ["click", "msgspec", "rich"])
def test_without_the_pipeline_the_command_says_what_to_install(small: ModuleType, package: str) -> None:
    result = process(small, "--help", block=(package,))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.endswith('pip install "compress-edge[pipeline]"')


def test_help_loads_nothing_heavy(small: ModuleType) -> None:
    heavy = ("torch", "torchao", "onnx", "onnxruntime", "openvino", "scipy", "sklearn", "rich.progress", "plotly",
             "yaml", "jinja2")  # fmt: skip
    result = process(small, "--help", block=heavy)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_metric_in_the_current_folder(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metric_of_mine.py").write_text("def score(outputs, target):\n    return [0.25] * len(target)\n")
    (tmp_path / "click.py").write_text("raise SystemExit('this is not click')\n")
    command = [sys.executable, "-c", "from compress.__main__ import main; main()", "eval", finished / "out/bundle",
               "--data", finished / "validation", "--metric", "metric_of_mine:score", "--json", "--quiet"]  # fmt: skip
    environment = {**small.ENVIRONMENT, "PYTHONSAFEPATH": "1"}  # as an installed command: no current folder in front
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["value"] == 0.25


def test_a_backend_that_is_not_installed(int8: Path, small: ModuleType, tmp_path: Path) -> None:
    flags = ("--target", "openvino-cpu", "--output", tmp_path / "engine", "--quiet")
    result = process(small, "export", int8, *flags, block=("openvino",))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("compress: target 'openvino-cpu' needs openvino (")
    assert line.endswith('pip install "compress-edge[openvino]"')
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_installed_for_a_bundle(finished: Path, small: ModuleType) -> None:
    flags = ("--data", finished / "validation", "--target", "openvino-cpu", "--quiet")
    result = process(small, "eval", finished / "out/bundle", *flags, block=("openvino",))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert 'pip install "compress-edge[openvino]"' in line


@pytest.mark.slow
def test_a_full_disk(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    """A tmpfs that holds the first stages of the recipe and not all: these stay, and the next run goes on from them."""
    inner = f"""
        mount -t tmpfs -o size=400k tiny {tmp_path}
        {sys.executable} -m compress run {finished}/recipe.yaml --output {tmp_path}/out; echo code $?
        cd {tmp_path}/out/store
        ls -A tmp
        find . -name '.?*'
        ls stages | wc -l
    """
    mount = ["unshare", "-rm", "sh", "-c"]
    probe = f"mount -t tmpfs -o size=1m tiny {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*mount, probe], capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    result = subprocess.run([*mount, inner], env=small.ENVIRONMENT, capture_output=True, text=True, check=False)
    *told_done, line = result.stderr.splitlines()
    assert line.startswith("compress: cannot ")
    assert "no space left on the disk" in line
    assert "what was finished is kept" in line
    code, *left, count = result.stdout.splitlines()
    assert (code, left) == ("code 2", [])
    told = [entry for entry in told_done if entry.startswith("done ")]
    assert int(count) >= len(told) > 0  # and those of the export that was cut short, which is told as one


def test_a_full_disk_that_a_library_says_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise RuntimeError("write failed: No space left on device")

    monkeypatch.setattr("compress.targets.targets", full)
    assert refused("targets") == (
        "compress: no space left on the disk (write failed: No space left on device): free some and run it again; "
        "what was finished is kept")


def test_an_interrupted_command_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.targets.targets", interrupted)
    result = CliRunner().invoke(cli, ["targets"])
    assert result.exit_code == 130
    assert result.stderr == "compress: interrupted; finished stages of a recipe are kept for the next `compress run`\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("compress.targets.targets", broken)
    with pytest.raises(KeyError, match="a bug"):
        call("targets")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_wrong_flag_is_one_line(finished: Path) -> None:
    model, data = finished / "model.pt", ("--data", finished / "calibration")
    assert refused("prune", model, *data, "--macs", "2") == (
        "compress: prune: macs=2.0 is the share of MACs to keep: give a number in (0, 1]")
    quantize = ("quantize", model, "--calibration", finished / "calibration")
    assert refused(*quantize, "--percentile", "0.5") == "compress: percentile is 0.5: it must be in (50, 100]"
    assert refused(*quantize, "--ranges", "best").startswith("compress: Invalid value for '--ranges': 'best' is not")
    assert refused("prune", model) == "compress: Missing option '--data'. See: cli prune --help"
    bench = ("bench", finished / "out/bundle")
    assert refused(*bench, "--restarts", "0") == "compress: restarts must be at least 1, got 0"
    line = refused("prune", model, *data, "--mac", "2")
    assert line.startswith("compress: No such option")
    assert line.endswith("See: cli prune --help")
    assert refused("shrink", model).startswith("compress: No such command 'shrink'")


@pytest.mark.parametrize("verb", ["inspect", "export", "quantize", "prune", "parity", "eval", "bundle create"])
def test_a_missing_model(verb: str, finished: Path, tmp_path: Path) -> None:
    extra = {"quantize": ("--calibration", finished / "calibration"), "inspect": (), "export": ()}
    line = refused(*verb.split(), tmp_path / "none.pt", *extra.get(verb, ("--data", finished / "validation")))
    assert line == f"compress: model file {tmp_path}/none.pt does not exist"
    assert list(tmp_path.iterdir()) == []


def test_other_missing_files(finished: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert refused("run", none) == f"compress: recipe {none} does not exist"
    recipe = finished / "recipe.yaml"
    assert refused("run", recipe, "--speedup", "fast") == (
        f"compress: {recipe}: speedup must be a number above 1, or most, got 'fast'")
    assert refused("run", recipe, "--speedup", 3, "--max-drop", 0.02) == (
        f"compress: {recipe}: speedup says how much is pruned: leave macs out of the prune stage")
    assert refused("run", recipe, "--rounds", 0) == f"compress: {recipe}: rounds must be at least 1, got 0"
    for line in (
        refused("quantize", finished / "model.pt", "--calibration", none), refused("report", none),
        refused("bench", none), refused("inspect", finished / "model.pt", "--example", none),
        refused("bench", finished / "out/bundle", "--controls", none, "--target", "openvino-cpu"),
        refused("distill", finished / "model.pt", "--teacher", none, "--data", finished / "train"),
    ):  # fmt: skip
        assert str(none) in line
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_model(finished: Path, tmp_path: Path) -> None:
    good = (finished / "model.pt").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    cases = {
        "text.txt": (b"hello", "is not a model: expected a .pt of compress.save, a .pt2 or a .py with get_model()"),
        "model.onnx": (good, "is not an ONNX model ("),
        "cut.pt": (good[: len(good) // 2], "is damaged or not a model file"),
        "flipped.pt": (bytes(flipped), "is damaged"),
        "empty.pt": (b"", "is damaged or not a model file"),
        "other.pt": (other.getvalue(), "is a zip archive, but not of a model"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        line = refused("inspect", tmp_path / name)
        assert line.startswith(f"compress: {tmp_path / name} {message}")
    assert "is a folder" in refused("inspect", tmp_path)


class Opens:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickled_module_is_not_unpickled(tmp_path: Path, small: ModuleType) -> None:
    torch.save(small.trained(), tmp_path / "pickled.pt")
    line = refused("inspect", tmp_path / "pickled.pt")
    assert "is a pickled module: loading it would run code from the file" in line
    assert line.endswith("pass --trust-pickle")
    torch.save(Opens(tmp_path / "ran"), tmp_path / "hostile.pt")
    assert "--trust-pickle" in refused("inspect", tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    refused("inspect", tmp_path / "plain.pt", "--trust-pickle")
    assert not (tmp_path / "ran").exists()


def test_a_trusted_pickle_and_a_state_dict(tmp_path: Path, small: ModuleType) -> None:
    np.savez(tmp_path / "example.npz", **small.samples(2, 9)[0])
    example = ("--example", tmp_path / "example.npz")
    torch.save(small.trained(), tmp_path / "pickled.pt")
    assert told("inspect", tmp_path / "pickled.pt", "--trust-pickle", *example)["name"] == "pickled"
    torch.save(small.trained().state_dict(), tmp_path / "weights.pt")
    line = refused("inspect", tmp_path / "weights.pt", *example)
    assert line.endswith("is a state dict, weights without a network: name what builds it with --factory")
    factory = ("--factory", "small_recipe:Tiny")
    assert told("inspect", tmp_path / "weights.pt", *factory, *example)["name"] == "weights"
    assert refused("inspect", tmp_path / "weights.pt", *factory).endswith("name a data set with --example")
    (tmp_path / "example.npz").write_bytes(b"PK\x03\x04 cut")
    assert "example.npz is not an .npz file" in refused("inspect", tmp_path / "weights.pt", *factory, *example)


def test_a_factory_is_called_only_when_it_is_named(finished: Path, tmp_path: Path) -> None:
    prune = ("prune", finished / "model.pt", "--data", finished / "calibration", "--output", tmp_path / "p.pt")
    line = refused(*prune)
    assert line.endswith("say so with --factory small_recipe:Tiny (in a recipe: factory: small_recipe:Tiny)")
    assert "factory 'no_such_module:build' cannot be imported" in refused(*prune, "--factory", "no_such_module:build")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite(finished: Path, tmp_path: Path, small: ModuleType) -> None:
    model = read_model(finished / "model.pt")
    with torch.no_grad():
        model.weights["head.0.weight"][0, 0] = float("nan")
    write_model(model, tmp_path / "nan.pt")
    line = refused("export", tmp_path / "nan.pt", "--output", tmp_path / "engine")
    assert "weight 'head.0.weight' has values that are not finite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feed: feed.pop("word"), "'word'"),
        (lambda feed: feed.update(picture=feed["picture"].astype(np.float64)), "'picture'"),
        (lambda feed: feed.update(picture=feed["picture"][:, :5]), "'picture'"),
        (lambda feed: feed["picture"].__setitem__((3, 2), np.nan), "'picture'"),
        (lambda feed: feed["picture"].__setitem__((3, 2), np.inf), "'picture'"),
        (lambda feed: feed.update({name: array[:0] for name, array in feed.items()}), "bad.npz"),
    ],
    ids=["missing", "dtype", "shape", "nan", "infinite", "empty"],
)
def test_a_calibration_set_that_does_not_match(
    finished: Path, tmp_path: Path, small: ModuleType, change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    feed = small.samples(8, 0)[0]
    change(feed)
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set/bad.npz", **feed)
    line = refused("quantize", finished / "model.pt", "--calibration", tmp_path / "set", "--output", tmp_path / "q.pt")
    assert f"{tmp_path}/set/bad.npz" in line
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_calibration_set(finished: Path, tmp_path: Path) -> None:
    line = refused("quantize", finished / "model.pt", "--calibration", tmp_path)
    assert str(tmp_path) in line


def test_a_labelled_set_is_asked_for(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    calibration.write(tmp_path / "plain", small.samples(8, 0)[0])
    assert "target" in refused("eval", finished / "model.pt", "--data", tmp_path / "plain")
    assert "unknown metric 'acuracy': did you mean 'accuracy'" in refused(
        "eval", finished / "model.pt", "--data", finished / "validation", "--metric", "acuracy")


def test_an_unknown_target(finished: Path, tmp_path: Path) -> None:
    data = ("--data", finished / "validation")
    calibrated = ("--calibration", finished / "calibration")
    for line in (
        refused("quantize", finished / "model.pt", *calibrated, "--target", "openvno-cpu"),
        refused("export", finished / "model.pt", "--target", "openvno-cpu"),
        refused("bundle", "create", finished / "model.pt", *data, "--target", "openvno-cpu"),
        refused("parity", finished / "model.pt", *data, "--target", "openvno-cpu"),
        refused("bench", finished / "out/bundle", "--target", "openvno-cpu"),
    ):
        assert line.startswith("compress: unknown target 'openvno-cpu': did you mean openvino-cpu")
    assert "has no engine for target 'rtx': it has those of onnxruntime-cpu, openvino-cpu" in refused(
        "bench", finished / "out/bundle", "--target", "rtx")


def test_stages_on_the_wrong_model(finished: Path, int8: Path, tmp_path: Path) -> None:
    calibration_flags = ("--calibration", finished / "calibration", "--output", tmp_path / "q.pt")
    assert "is quantized already: quantize the float model" in refused("quantize", int8, *calibration_flags)
    assert "is quantized with the scheme" in refused("export", int8, "--target", "rtx", "--output", tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    data = ("--data", finished / "validation", "--target", "onnxruntime-cpu")
    line = refused("bundle", "create", finished / "model.pt", *data, "--output", tmp_path / "mine")
    assert "was not made by compress" in line
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    line = refused("quantize", finished / "model.pt", "--calibration", finished / "calibration",
                   "--output", tmp_path / "file/q.pt")  # fmt: skip
    assert line.startswith(f"compress: cannot write {tmp_path}/file/q.pt")


@pytest.mark.parametrize("verb", ["prune", "distill", "quantize", "budget"])
def test_a_file_that_could_not_be_written_is_refused_before_any_work(
    verb: str, finished: Path, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"compress.{verb}", None)       # would fail
    given = {"prune": (finished / "model.pt", "--data", finished / "calibration", "--factory", "small_recipe:Tiny"),
             "distill": (finished / "model.pt", "--data", finished / "train", "--teacher", finished / "model.pt"),
             "quantize": (finished / "model.pt", "--calibration", finished / "calibration"),
             "budget": (int8, "--validation", finished / "validation")}[verb]  # fmt: skip
    line = refused(verb, *given, "--output", tmp_path / "none/x.pt")
    assert line == (f"compress: cannot write {tmp_path}/none/x.pt: {tmp_path}/none is no folder: make it, or give "
                    "another --output")  # fmt: skip
    assert "it is a folder: give a file as --output" in refused(verb, *given, "--output", tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert f"the folder {tmp_path} is read-only: give another" in refused(verb, *given, "--output", tmp_path / "x.pt")


def test_a_module_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def get_model(): return 5\ndef get_args(): return {}\n")
    assert "get_model() returned int, not an nn.Module" in refused("inspect", tmp_path / "mine.py")
    assert issubclass(nn.Linear, nn.Module)
