"""docs/models/speech.md: its commands and its Python run, on a small folder and recordings of the names it uses."""

from __future__ import annotations

import re
import shlex
import wave
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from tests.compress.huggingface.folders import speech
from tests.compress.huggingface.generators import PLAIN, whisper

PAGE = Path(__file__).parents[3] / "docs/models/speech.md"


@pytest.mark.slow
def test_everything_on_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whisper(tmp_path / "whisper-base", generation={"suppress_tokens": list(range(PLAIN + 1, 273))})
    (tmp_path / "recordings").mkdir()
    for index, rate in enumerate((16000, 16000, 44100)):
        with wave.open(str(tmp_path / f"recordings/{index}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((speech(0.8, index) * 32767).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["", "", "python"]
    for language, block in blocks:
        if language == "python":
            capsys.readouterr()
            exec(block, {})     # the page's own words
            assert re.match(r"\{'text': '.+'\}", capsys.readouterr().out, re.DOTALL)
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            assert words[0] == "compress"
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0, (line, result.output)
