"""docs/models/vision-language.md: its commands and its Python run, on small folders and data of the names it uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from tests.compress.huggingface.folders import change, picture
from tests.compress.huggingface.pairs import blip, llava, vilt

PAGE = Path(__file__).parents[3] / "docs/models/vision-language.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
QUESTIONS = ["is it a dog?", "the fox?", "a cat, two dogs?"]


def pictures(folder: Path, *, texts: list[str] | None = None) -> None:
    folder.mkdir()
    for index in range(3):
        picture(40 + index, 60, index).save(folder / f"{index}.png")
        if texts is not None:
            (folder / f"{index}.txt").write_text(texts[index])


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.splitlines()[0])
def test_everything_on_the_page_runs(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "vilt" in section:
        vilt(tmp_path / "vilt-vqa")
    elif "blip" in section:
        blip(tmp_path / "blip-captions")
    else:
        folder = llava(tmp_path / "llava", max_position_embeddings=192)
        change(folder, "generation_config.json", max_new_tokens=6)
    pictures(tmp_path / "photos")
    pictures(tmp_path / "questions", texts=QUESTIONS)
    pictures(tmp_path / "prompts", texts=[f"USER: <image> {question} AI:" for question in QUESTIONS])
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["", "python"]
    for language, block in blocks:
        if language == "python":
            capsys.readouterr()
            exec(block, {})     # the page's own words
            printed = capsys.readouterr().out.splitlines()
            assert len(printed) == block.count("print(")
            assert all(re.match(r"\{'(text|logits)': ['\[{]", line) for line in printed), printed
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] == "compress"
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0, (line, result.output)
