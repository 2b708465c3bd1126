"""Metrics by name: the built-in ones, those of the user's own, and what is said of one that is unknown or wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import METRICS, find_metric, get_metric, value_of

LOGITS = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
TARGET = np.array([1, 0, 0])

OWN = """
import numpy as np
from compress.metrics import Metric
table = 3
def closeness(outputs, target):
    return -np.abs(outputs["output"][:, 0] - target)
def one_number(outputs, target):
    return 0.5
def broken(outputs, target):
    return outputs["logits"]
def counted(outputs, target):
    return np.ones(len(target))
rate = Metric(name="mine", statistics=lambda outputs, target: outputs["output"], lower_is_better=True,
              value=lambda sums: sums[..., 0] / sums[..., 1])
flat = Metric(name="mine", statistics=counted, value=lambda sums: sums[..., 0])
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


def test_a_function_of_the_users_own() -> None:
    metric = get_metric("own_metrics:closeness")
    np.testing.assert_allclose(metric.per_sample({"output": LOGITS}, TARGET), [-0.9, -0.8, -0.3], rtol=1e-6)
    assert metric.name == "own_metrics:closeness"


@pytest.mark.parametrize(("name", "message"), [
    ("acuracy", "unknown metric 'acuracy': did you mean 'accuracy'.* There are accuracy, precision, recall, f1, mse,"),
    ("recall@0", "unknown metric 'recall@0': did you mean 'recall@10'"),
    ("recall@x", "unknown metric 'recall@x'"),
    ("wer@5", "unknown metric 'wer@5'"),
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
    ("own_metrics:flat", r"'own_metrics:flat' returned shape \(3,\) for 3 samples, expected \(3, k\): equally many"),
])
def test_a_metric_that_is_wrong(name: str, message: str) -> None:
    with pytest.raises(CompressError, match=message):
        get_metric(name).per_sample({"output": LOGITS}, TARGET)


def test_a_metric_of_the_users_own_that_is_no_mean() -> None:
    metric = get_metric("own_metrics:rate")
    assert (metric.name, metric.lower_is_better, metric.output) == ("own_metrics:rate", True, None)
    found = value_of(metric, metric.per_sample({"output": LOGITS}, TARGET))
    assert found.value == pytest.approx(1.2 / 1.8, rel=1e-6)


def test_names() -> None:
    assert get_metric("recall@7").name == "recall@7"
    assert {name: metric.name for name, metric in METRICS.items()} == {name: name for name in METRICS}
    assert (get_metric("wer/said").name, get_metric("wer/said").output) == ("wer/said", "said")
    assert get_metric("own_metrics:closeness/output").output == "output"


def test_what_is_known_of_a_metric_by_its_name_alone() -> None:
    wer = find_metric("wer/said")
    assert wer is not None
    assert (wer.lower_is_better, wer.is_share) == (True, True)
    assert find_metric("own_metrics:closeness") is None
    assert find_metric("nonsense") is None


def test_the_better_of_two_values() -> None:
    wer, accuracy = get_metric("wer"), get_metric("accuracy")
    assert (wer.is_no_worse(0.1, 0.2), wer.is_no_worse(0.2, 0.2), wer.is_no_worse(0.3, 0.2)) == (True, True, False)
    assert (accuracy.is_no_worse(0.1, 0.2), accuracy.is_no_worse(0.3, 0.2)) == (False, True)
