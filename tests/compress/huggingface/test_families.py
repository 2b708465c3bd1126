"""The table of families is the listing of the folder, and docs/huggingface.md says the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from compress.huggingface import FAMILIES
from tests.compress.huggingface.folders import transformers

DOCS = Path(__file__).parents[3] / "docs" / "huggingface.md"


def test_each_family_names_classes_of_the_library() -> None:
    for module in FAMILIES.values():
        names = importlib.import_module(module).ARCHITECTURES
        assert names
        assert all(hasattr(transformers, name) for name in names)


def test_the_documentation_lists_them() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE)
    listed = {kind: tuple(re.findall(r"`(\w+)`", classes.partition(":")[0])) for kind, classes in rows}
    assert listed == {kind: importlib.import_module(module).ARCHITECTURES for kind, module in FAMILIES.items()}
