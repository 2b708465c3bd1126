from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner, Result

from compress.bench import BenchConfig
from compress.distill import DistillConfig
from compress.errors import CompressError
from compress.options import options_of
from compress.prune import PruneConfig
from compress.quantize import QuantizeConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: Literal["a", "b"] = field(default="a", metadata={"help": "Which kind."})
    how_many: int = field(default=3, metadata={"help": "How many."})
    rate: float | None = field(default=None, metadata={"help": "At what rate."})
    fast: bool = field(default=False, metadata={"help": "Hurry."})
    keep: tuple[str, ...] = field(default=(), metadata={"help": "What to keep."})
    named: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.how_many < 1:
            raise CompressError(f"how_many is {self.how_many}")
        if self.how_many > 99:
            raise ValueError(f"how_many is {self.how_many}, too many")


def call(*arguments: str) -> tuple[Result, dict[str, Any]]:
    got: dict[str, Any] = {}

    @click.command()
    @click.argument("first")
    @options_of(Config, leave_out=("named",))
    @click.option("--last")
    def command(**received: Any) -> None:
        """Does it."""
        got.update(received)

    return CliRunner().invoke(command, ["one", *arguments]), got


def test_no_flags_are_the_configs_defaults() -> None:
    result, got = call()
    assert result.exit_code == 0
    assert got == {"config": Config(), "first": "one", "last": None}


def test_every_kind_of_flag() -> None:
    flags = "--kind b --how-many 5 --rate 0.5 --fast --keep x --keep y.* --last z".split()
    result, got = call(*flags)
    assert result.exit_code == 0
    assert got["config"] == Config(kind="b", how_many=5, rate=0.5, fast=True, keep=("x", "y.*"))
    assert got["last"] == "z"
    assert call("--fast", "--no-fast")[1]["config"].fast is False


def test_the_help_is_the_fields() -> None:
    text = " ".join(call("--help")[0].stdout.split())
    assert "Does it." in text
    for expected in ("--kind [a|b] Which kind. [default: a]", "--how-many INTEGER How many. [default: 3]",
                     "--rate FLOAT At what rate.", "--fast / --no-fast Hurry.",
                     "--keep TEXT What to keep."):  # fmt: skip
        assert expected in text
    assert "named" not in text
    assert text.index("--kind") < text.index("--how-many") < text.index("--keep")


@pytest.mark.parametrize("value", ["0", "100"])
def test_what_the_config_refuses_is_an_expected_error(value: str) -> None:
    result, _ = call("--how-many", value)
    assert isinstance(result.exception, CompressError)
    assert f"how_many is {value}" in str(result.exception)


@pytest.mark.parametrize("flags", [["--kind", "c"], ["--how-many", "many"], ["--rate"], ["--bogus"]])
def test_what_click_refuses(flags: list[str]) -> None:
    assert call(*flags)[0].exit_code == 2


@pytest.mark.parametrize("config", [PruneConfig, DistillConfig, QuantizeConfig, BenchConfig])
def test_the_stages_configs_make_commands(config: type) -> None:
    got: dict[str, Any] = {}

    @click.command()
    @options_of(config)
    def command(**received: Any) -> None:
        got.update(received)

    result = CliRunner().invoke(command, [])
    assert (result.exit_code, got) == (0, {"config": config()})
