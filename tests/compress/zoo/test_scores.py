"""Accuracy, precision, recall and F1 against scikit-learn's, and the metric of a sigmoid's output by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from compress.errors import CompressError
from compress.metrics import get_metric
from compress.zoo.scores import decided_right, scores_of


@pytest.mark.parametrize("shape", [(300, 1), (300, 2)])
def test_scores_are_scikit_learns(shape):
    rng = np.random.default_rng(0)
    output, target = rng.random(shape), rng.integers(0, 2, 300)
    said = output[:, 0] >= 0.5 if shape[1] == 1 else output[:, 1] > output[:, 0]
    scores = scores_of(output, target)
    assert scores == pytest.approx({
        "accuracy": accuracy_score(target, said), "precision": precision_score(target, said),
        "recall": recall_score(target, said), "f1": f1_score(target, said),
    })  # fmt: skip


def test_a_share_of_nothing_is_zero():
    assert scores_of(np.zeros((2, 1)), np.zeros(2)) == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0}


def test_decided_right_by_hand():
    metric = get_metric("compress.zoo.scores:decided_right")
    output = {"output": np.array([[0.9], [0.4], [0.5], [0.1]], np.float32)}
    np.testing.assert_array_equal(metric.per_sample(output, np.array([1, 1, 1, 0])), [1, 0, 1, 1])


def test_two_outputs_are_refused():
    with pytest.raises(CompressError, match=r"one output, and this one has \['a', 'b'\]"):
        decided_right({"b": np.zeros((1, 1)), "a": np.zeros((1, 1))}, np.zeros(1))
