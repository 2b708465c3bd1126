"""docs/pruning.md names what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

from compress.prune.config import Importance, PruneConfig, Structure

TEXT = (Path(__file__).parents[3] / "docs/pruning.md").read_text(encoding="utf-8")


def cells(heading: str) -> list[str]:
    """The names in the first column of the table under ``heading``."""
    section = TEXT[TEXT.index(f"## {heading}") :].split("\n## ")[0]
    return re.findall(r"^\| `(?:--)?([\w-]+)` \|", section, re.MULTILINE)


def test_every_goal() -> None:
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(PruneConfig)}
    assert set(cells("How much")) <= fields
    told = set(re.findall(r"--([a-z][a-z-]*)", TEXT))
    assert fields <= told
    assert told - fields == {"corpus", "data", "factory", "metric", "tables", "validation"}  # of the command


def test_every_structure_and_measure() -> None:
    assert tuple(cells("What shrinks")) == get_args(Structure)
    assert tuple(cells("What is missed least")) == get_args(Importance)
    assert set(get_args(Structure)) - set(PruneConfig().structures) == {"blocks", "width"}
