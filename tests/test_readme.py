"""The README: its figures are the committed record's, and every verb and name it shows exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

import compress
from compress.cli import cli
from compress.recipe import read_recipe
from compress.targets import targets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_committed_record() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_exists_with_its_options() -> None:
    lines = [line.split("#")[0].split() for line in re.findall(r"^ {4}compress (.*)", README, re.MULTILINE)]
    assert {words[0] for words in lines} == {"inspect", "quantize", "run", "bench", "targets", "bundle"}
    for words in lines:
        command = cli.commands[words[0]]
        while isinstance(command, click.Group):
            words = words[1:]
            command = command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, words


def test_every_python_name_exists() -> None:
    names = set(re.findall(r"compress\.([A-Za-z]+)\(", README))
    assert {"save", "load", "prune", "quantize", "PruneConfig"} <= names
    assert names <= set(compress.__all__)


def test_every_target_is_in_the_table() -> None:
    table = README[README.index("| target | for |") : README.index("`local` means")]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) == set(targets())


def test_the_recipe_is_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    assert [stage.name for stage in read_recipe(recipe).stages] == [
        "prune", "distill", "quantize", "distill", "export", "bench",
    ]  # fmt: skip
