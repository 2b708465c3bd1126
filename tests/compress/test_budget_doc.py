"""docs/budget.md: its recipe is one, and names what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from compress.recipe import Budget, read_recipe

TEXT = (Path(__file__).parents[2] / "docs/budget.md").read_text(encoding="utf-8")


def test_its_recipe_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    recipe = {"version": 1, "model": "model.pt", "target": "openvino-cpu", **yaml.safe_load(block),
              "data": {"calibration": "c", "train": "t", "validation": "v"}}  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert read_recipe(path).budget == Budget(max_drop=0.01, speedup="most", rounds=6)


def test_its_keys_and_defaults_are_those_of_the_budget() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `--([\w-]+)` \| ([^|:]+)", TEXT, re.MULTILINE)
    assert [(key, flag) for key, flag, _ in rows] == [
        (field.name, field.name.replace("_", "-")) for field in dataclasses.fields(Budget)]  # fmt: skip
    told = {key: default.strip() for key, _, default in rows}
    assert told == {"max_drop": str(Budget().max_drop), "speedup": "none", "rounds": str(Budget().rounds)}
