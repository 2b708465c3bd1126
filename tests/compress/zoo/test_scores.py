"""Scores of classes and of numbers against scikit-learn's, and the metric of a sigmoid's output by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
)

from compress.errors import CompressError
from compress.metrics import get_metric
from compress.zoo.scores import class_scores, constant_answer, decided_right, number_scores, scores_of
from compress.zoo.tasks import Task

DECISION = Task(loss="binary cross-entropy", labels=("no", "yes"))
NUMBER = Task(loss="mean squared error")


@pytest.mark.parametrize(("width", "average"), [(1, "binary"), (2, "binary"), (4, "macro")])
def test_scores_are_scikit_learns(width, average):
    rng = np.random.default_rng(0)
    task = DECISION if width == 1 else Task(loss="cross-entropy", labels=tuple("abcd"[:width]))
    output, target = rng.random((300, width)), rng.integers(0, max(2, width), 300)
    said = output[:, 0] >= 0.5 if width == 1 else output.argmax(1)
    scores = scores_of({"output": output}, target, {"output": task})
    assert scores == pytest.approx({
        "accuracy": accuracy_score(target, said), "precision": precision_score(target, said, average=average),
        "recall": recall_score(target, said, average=average), "f1": f1_score(target, said, average=average),
    })  # fmt: skip


def test_a_share_of_nothing_is_zero():
    assert class_scores(np.zeros(2), np.zeros(2), 2) == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0}


def test_errors_are_scikit_learns():
    rng = np.random.default_rng(0)
    said, target = rng.normal(size=50).astype(np.float32), rng.normal(size=50)
    assert number_scores(said, target) == pytest.approx({
        "mean squared error": mean_squared_error(target, said),
        "mean absolute error": mean_absolute_error(target, said), "r2": r2_score(target, said),
    })  # fmt: skip


def test_several_outputs_have_scores_of_their_own():
    outputs = {"brake": np.array([[0.9], [0.2]]), "angle": np.array([[1.0], [3.0]])}
    scores = scores_of(outputs, np.array([[1, 2.0], [1, 4.0]]), {"brake": DECISION, "angle": NUMBER})
    assert scores["brake accuracy"] == 0.5
    assert scores["angle mean squared error"] == 1.0
    assert len(scores) == 4 + 3


def test_the_constant_answer_is_the_most_frequent_class_and_the_mean():
    tasks = {"kind": Task(loss="cross-entropy", labels=("a", "b", "c")), "brake": DECISION, "angle": NUMBER}
    target = np.array([[2, 0, 1.0], [2, 0, 2.0], [1, 1, 6.0]])
    answer = constant_answer(target, tasks, 2)
    np.testing.assert_array_equal(answer["kind"], [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(answer["brake"], [[0]] * 2)
    np.testing.assert_array_equal(answer["angle"], [[3]] * 2)


def test_decided_right_by_hand():
    metric = get_metric("compress.zoo.scores:decided_right")
    output = {"output": np.array([[0.9], [0.4], [0.5], [0.1]], np.float32)}
    np.testing.assert_array_equal(metric.per_sample(output, np.array([1, 1, 1, 0])), [1, 0, 1, 1])


def test_two_outputs_are_refused():
    with pytest.raises(CompressError, match=r"one output, and this one has \['a', 'b'\]"):
        decided_right({"b": np.zeros((1, 1)), "a": np.zeros((1, 1))}, np.zeros(1))
