"""Metrics: accuracy by hand, and what is said of a metric that is unknown or wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric

LOGITS = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
TARGET = np.array([1, 0, 0])

OWN = """
import numpy as np
table = 3
def closeness(outputs, target):
    return -np.abs(outputs["output"][:, 0] - target)
def one_number(outputs, target):
    return 0.5
def broken(outputs, target):
    return outputs["logits"]
def undefined(outputs, target):
    scores = np.ones(len(target))
    scores[1] = np.nan
    return scores
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_metrics", None)


def test_accuracy_by_hand() -> None:
    scores = get_metric("accuracy").per_sample({"output": LOGITS}, TARGET)
    np.testing.assert_array_equal(scores, [1.0, 1.0, 0.0])
    assert scores.dtype == np.float64


def test_a_function_of_the_users_own() -> None:
    metric = get_metric("own_metrics:closeness")
    np.testing.assert_allclose(metric.per_sample({"output": LOGITS}, TARGET), [-0.9, -0.8, -0.3], rtol=1e-6)
    assert metric.name == "own_metrics:closeness"


@pytest.mark.parametrize(("name", "message"), [
    ("acuracy", "unknown metric 'acuracy': did you mean 'accuracy'"),
    ("own_metrics:missing", "'own_metrics:missing' cannot be imported: .*missing"),
    ("no_such_module:f", "'no_such_module:f' cannot be imported: No module"),
    (":f", "':f' cannot be imported"),
    ("own_metrics:table", "'own_metrics:table' is a int, not a function"),
])
def test_a_name_that_is_no_metric(name: str, message: str) -> None:
    with pytest.raises(CompressError, match=message):
        get_metric(name)


@pytest.mark.parametrize(("name", "message"), [
    ("own_metrics:one_number", r"'own_metrics:one_number' returned shape \(\) for 3 samples, expected \(3,\)"),
    ("own_metrics:broken", "'own_metrics:broken' failed on 3 samples: KeyError: 'logits'"),
    ("own_metrics:undefined", "'own_metrics:undefined' gave nan for sample 1"),
])
def test_a_metric_that_is_wrong(name: str, message: str) -> None:
    with pytest.raises(CompressError, match=message):
        get_metric(name).per_sample({"output": LOGITS}, TARGET)


def test_accuracy_refuses_what_it_cannot_score() -> None:
    with pytest.raises(CompressError, match=r"'accuracy' failed .*one output, and this one has \['boxes', 'output'\]"):
        get_metric("accuracy").per_sample({"output": LOGITS, "boxes": LOGITS}, TARGET)
    with pytest.raises(CompressError, match=r"answers have shape \(3,\) and the targets \(3, 1\)"):
        get_metric("accuracy").per_sample({"output": LOGITS}, TARGET[:, None])


@pytest.mark.parametrize("label", [3, -1, 0.5])
def test_a_label_that_is_no_class_is_refused(label: float) -> None:
    outputs = {"output": np.eye(3, dtype=np.float32)}
    with pytest.raises(CompressError, match=f"target {label} is no index of the 3 answers"):
        get_metric("accuracy").per_sample(outputs, np.array([0, 1, label]))
