"""docs/models: commands and Python of each page of a reference model run, with little training and measuring."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from small_recipe import BENCH

from compress.cli import cli
from compress.errors import CompressError
from compress.zoo import REFERENCES
from compress.zoo.speech import find_speaker

PAGES = Path(__file__).parents[3] / "docs/models"
DEMOS = sorted(path.name for path in PAGES.glob("*.md") if "compress demo" in path.read_text(encoding="utf-8"))


def _fences(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", DEMOS)
def test_everything_on_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "commands.md":
        try:
            find_speaker()
        except CompressError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    for language, block in _fences(page):
        if language == "python":
            exec(block, {})     # the page's own words
            assert re.search(r"\{'(label|caption)': ", capsys.readouterr().out)
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] == "compress"
            if words[1] == "demo":
                words.append("--quick")
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0, (line, result.output)
            if words[1] == "demo":
                _hurry(Path(words[2]) / "recipe.yaml")


def _hurry(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    for stage in content["stages"]:
        if "distill" in stage:
            stage["distill"]["epochs"] = 1
        if "bench" in stage:
            stage["bench"] = BENCH
    content["target"] = ["openvino-cpu"]        # the chain's test builds for every target
    recipe.write_text(yaml.safe_dump(content))


def test_every_model_is_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES.glob("*.md"))
    assert {name for name in REFERENCES if f"--model {name}\n" not in text and f"`{name}`" not in text} == set()
