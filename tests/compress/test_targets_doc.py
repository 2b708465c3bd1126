"""docs/targets.md names what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from compress.commands.targets import targets as group
from compress.targets import Target, get_target
from runtimes.machine import machine_facts
from runtimes.telemetry import Telemetry

TEXT = (Path(__file__).parents[2] / "docs/targets.md").read_text(encoding="utf-8")


def cells(heading: str) -> set[str]:
    """The names in the first column of the table under ``heading``."""
    section = TEXT[TEXT.index(f"## {heading}") :].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_key_of_a_row() -> None:
    assert cells("Your own rows") == {field.name for field in dataclasses.fields(Target)} - {"name"}


def test_every_fact() -> None:
    assert cells("What a probe reads") == set(machine_facts()) - {"arch", "hypervisor", "load_average"}


def test_every_measured_value(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.start()
    record = telemetry.stop()
    known = (set(record) | set(record["before"])) - {"before", "after", "duration_s", "quota_throttled_s"}
    assert cells("What is measured around a benchmark") == known


def test_the_example_is_a_valid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets.toml").write_text(re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)[0])
    assert get_target("gateway").python == "/opt/compress/bin/python"
    assert get_target("rpi5").address == "pi@kitchen"


def test_every_command() -> None:
    assert set(re.findall(r"^compress targets (\w+)", TEXT, re.MULTILINE)) == set(group.commands) - {"list"}
