"""The command as tests call it, in their own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from compress.cli import cli


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


def from_run(folder: Path, stage: str, at: int = 0) -> Path:
    """The model file that a stage of the finished run made."""
    report = json.loads((folder / "out/report.json").read_text())
    digest = [entry["digest"] for entry in report["stages"] if entry["stage"] == stage][at]
    return folder / "out/store/objects" / digest / "model.pt"
