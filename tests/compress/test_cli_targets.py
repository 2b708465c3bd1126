"""`compress targets` and its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

import compress.device
from compress.commands.targets import targets as group
from compress.errors import CompressError
from compress.targets import get_target, targets
from tests.compress import command

FACTS = {"cpu": "Cortex-A72\x1b[2J", "arch": "aarch64", "flags": ["asimd"], "dot_product": False,
         "memory_bytes": 4 << 30, "gpus": [], "npus": [], "backends": {"numpy": "2.0.1"}, "l4t": None, "jetpack": None,
         "temperatures_c": {"cpu-thermal": 51.25}, "board": "[N/A]", "clocks_mhz": None}  # fmt: skip


class Device:
    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return dict(FACTS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, which is the current folder too; every device is a Raspberry Pi 4."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compress.device, "open_device", lambda target, *, emulate, progress: Device())
    return tmp_path


def call(*arguments: str) -> Result:
    return command.call("targets", *arguments)


def told(*arguments: str) -> Any:
    return command.told("targets", *arguments)


def test_no_command_lists() -> None:
    assert told() == told("list")
    assert [row["name"] for row in told()] == list(targets())
    assert call().stdout == call("list").stdout
    assert "no address" in call().stdout


@pytest.mark.parametrize("command", ["list", "show", "add", "probe"])
def test_help(command: str) -> None:
    assert f"\n  {command} " in call("--help").stdout
    result = call(command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(option.help for option in group.commands[command].params if isinstance(option, click.Option))


def test_add_then_show_then_probe(home: Path) -> None:
    result = call("add", "attic", "--address", "pi@attic", "--like", "rpi5")
    assert result.exit_code == 0
    assert result.stdout.endswith("target 'attic' is at pi@attic; `compress targets probe attic` reads what it is\n")
    assert told("show", "attic")["found"] is None
    assert "Not probed." in call("show", "attic").stdout
    assert "pi@attic" in call().stdout

    found = told("probe", "attic")
    assert (found["target"], found["facts"], found["emulated"]) == ("attic", FACTS, False)
    assert len(found["contradictions"]) == 3
    assert (home / ".config/compress/devices/attic.json").is_file()

    shown = told("show", "attic")
    assert (shown["row"]["scheme"], shown["used"], shown["found"]["facts"]) == ("arm64", shown["row"], FACTS)
    assert shown["contradictions"] == found["contradictions"]


def test_probe_prints_a_table_and_warnings() -> None:
    call("add", "rpi5", "--address", "pi")
    text = call("probe", "rpi5").stdout
    assert "4.0 GiB" in text
    assert "cpu-thermal 51.25" in text
    assert "[N/A]" in text
    assert "\x1b" not in text
    assert "warning: the row says 8 GiB of memory and the device has 4.0\n" in text
    assert 'warning: onnxruntime is not installed for python3 there: pip install "compress-edge[onnxruntime]"' in text


def test_show_tells_what_is_used_instead() -> None:
    call("add", "server", "--address", "box", "--like", "onnxruntime-cpu")
    call("probe", "server")
    assert "x86-vnni; arm64 is used, as found" in call("show", "server").stdout
    assert told("show", "server")["used"]["scheme"] == get_target("server").scheme == "arm64"


def test_an_emulated_device_is_said_to_be_one() -> None:
    assert "rpi5: an emulated device, " in call("probe", "rpi5", "--emulate").stdout
    assert told("show", "rpi5")["found"] is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "rpi"), "unknown target 'rpi': did you mean rpi5?"),
        (("probe", "jetson"), "target 'jetson' means the one Jetson row with an address, and none has one"),
        (("add", "attic", "--address", "pi"), "no target is called 'attic': say which row it is like"),
        (("add", "rpi5", "--address", "a b"), "target 'rpi5': address 'a b' is not a host"),
        (("add", "rpi5"), "Missing option '--address'."),
        (("lst",), "No such command 'lst'."),
        (("show",), "Missing argument 'NAME'."),
    ],
)
def test_a_wrong_command_gets_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"compress: {line}")
    assert result.stderr.count("\n") == 1


def test_a_device_that_cannot_be_reached_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: object, *, emulate: bool, progress: object) -> None:
        raise CompressError("rpi5 (pi): it does not answer")

    monkeypatch.setattr(compress.device, "open_device", refuse)
    call("add", "rpi5", "--address", "pi")
    result = call("probe", "rpi5")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "compress: rpi5 (pi): it does not answer\n")
