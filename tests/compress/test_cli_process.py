"""The command as a process of its own, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from compress.cli import cli
from tests.compress.command import call, refused


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
