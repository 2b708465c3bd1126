"""docs/metrics.md lists every metric as it is, and its example of one's own works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.metrics import METRICS, value_of

TEXT = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_has_its_row() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    told = {name: row for row in rows for name in re.findall("`([^`]+)`", row[0])}
    assert told.keys() == {re.sub("@.*", "@K", name) for name in METRICS}
    for name, metric in METRICS.items():
        row = told[re.sub("@.*", "@K", name)]
        assert (row[3] == "share", row[4]) == (metric.is_share, "lower" if metric.lower_is_better else "higher")
        assert row[1].startswith("texts") == (metric.reads == "texts")


def test_the_example_of_a_metric_of_ones_own() -> None:
    (code,) = [block for block in re.findall("```python\n(.*?)```", TEXT, re.DOTALL) if "Metric(" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    found = names["rmse"].per_sample({"output": np.array([[1.0], [5.0]])}, np.array([1.0, 1.0]))
    assert value_of(names["rmse"], found).value == pytest.approx(8**0.5)
