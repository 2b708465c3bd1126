"""Metrics of classifiers: by hand, against scikit-learn, and what is said of outputs they cannot take."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from compress.errors import CompressError
from compress.metrics import Metric, get_metric, value_of

LOGITS = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
TARGET = np.array([1, 0, 0])
SCORES = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


def value(name: str, output: np.ndarray, target: np.ndarray) -> float:
    metric = get_metric(name)
    return value_of(metric, metric.per_sample({"output": output}, target)).value


def test_accuracy_by_hand() -> None:
    scores = get_metric("accuracy").per_sample({"output": LOGITS}, TARGET)
    np.testing.assert_array_equal(scores, [1.0, 1.0, 0.0])
    assert scores.dtype == np.float64


def test_accuracy_of_a_decision() -> None:
    """A probability of 0.5 is a yes."""
    scores = get_metric("accuracy").per_sample({"output": np.array([[0.5], [0.49], [1.0]])}, TARGET)
    np.testing.assert_array_equal(scores, [1.0, 1.0, 0.0])


def test_statistics_of_two_classes_by_hand() -> None:
    """Right yes, right no, wrong yes, wrong no: true and false positives and false negatives of the second class."""
    logits = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], float)
    target = np.array([1, 0, 0, 1])
    for output in (logits, logits[:, 1:]):
        found = get_metric("f1").per_sample({"output": output}, target)
        np.testing.assert_array_equal(found, [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
        assert [value(name, output, target) for name in SCORES] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_values_are_those_of_scikit_learn(name: str, classes: int) -> None:
    """Of more than two classes the mean over those that occur: the last of six does not."""
    rng = np.random.default_rng(classes)
    target = rng.integers(0, min(classes, 5), 200)
    logits = rng.normal(size=(200, classes)) + 1.5 * np.eye(classes)[target]
    logits[:, 5:] = -9
    average = "binary" if classes == 2 else "macro"
    expected = SCORES[name](target, logits.argmax(1), average=average, zero_division=0)
    assert value(name, logits, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", list(SCORES))
def test_several_decisions_a_sample(name: str) -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, (100, 4))
    probabilities = np.clip(0.3 * target + rng.random((100, 4)) * 0.7, 0, 1)
    expected = SCORES[name](target, probabilities >= 0.5, average="macro", zero_division=0)
    assert value(name, probabilities, target) == pytest.approx(expected, abs=1e-12)


def test_nothing_called_and_nothing_there_is_zero() -> None:
    zeros = np.zeros(4, int)
    assert [value(name, zeros[:, None] * 0.1, zeros) for name in SCORES] == [0.0, 0.0, 0.0]


def test_accuracy_refuses_what_it_cannot_score() -> None:
    accuracy = get_metric("accuracy")
    with pytest.raises(CompressError, match=r"'accuracy' failed .*one output, and this one has \['boxes', 'output'\]: "
                                            "name one as METRIC/OUTPUT"):
        accuracy.per_sample({"output": LOGITS, "boxes": LOGITS}, TARGET)
    with pytest.raises(CompressError, match=r"answers have shape \(3,\) and the targets \(3, 1\)"):
        accuracy.per_sample({"output": LOGITS}, TARGET[:, None])
    with pytest.raises(CompressError, match=r"the targets are texts \('yes'\): give class indices"):
        accuracy.per_sample({"output": LOGITS}, np.array(["yes", "no", "no"]))


@pytest.mark.parametrize("label", [3, -1, 0.5])
@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_a_label_that_is_no_class_is_refused(name: str, label: float) -> None:
    outputs = {"output": np.eye(3, dtype=np.float32)}
    with pytest.raises(CompressError, match=f"target {label} is no index of the 3 answers"):
        get_metric(name).per_sample(outputs, np.array([0, 1, label]))


@pytest.mark.parametrize("metric", [get_metric("accuracy"), get_metric("precision")])
def test_one_value_a_decision_must_be_a_probability(metric: Metric) -> None:
    with pytest.raises(CompressError, match=r"value 2\.5 or -1\.2.* must be a probability in \[0, 1\]: end the model"):
        metric.per_sample({"output": np.array([[2.5], [0.3], [-1.2]])}, TARGET)


def test_scores_of_words_have_no_f1() -> None:
    with pytest.raises(CompressError, match=r"output has shape \(3, 5, 2\) and the targets \(3, 5\): it takes scores"):
        get_metric("f1").per_sample({"output": np.zeros((3, 5, 2))}, np.zeros((3, 5), int))
