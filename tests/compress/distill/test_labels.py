import math

import numpy as np
import pytest
import torch

from calibration import open_set
from compress.distill.kinds import Output
from compress.distill.labels import label_loss, pairing_loss, read_labels, task_kind
from compress.errors import CompressError
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)
GIVEN = TensorSpec(name="given", dtype="float32", shape=(BATCH, 2))


def output(kind, *sizes, name="output", index=0):
    spec = TensorSpec(name=name, dtype="float32", shape=(BATCH, *sizes))
    return Output(index=index, spec=spec, kind=kind, compared=kind)


def labelled(**labels):
    feed = {"given": np.zeros((3, 2), np.float32)}
    return open_set([feed | {name.replace("_", "."): np.array(value) for name, value in labels.items()}], [GIVEN],
                    name="toys")  # fmt: skip


def test_cross_entropy_of_scores_and_of_shares():
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = -(math.log(0.25) + math.log(0.5)) / 2
    for kind, given in (("scores", scores), ("shares", scores.softmax(-1))):
        np.testing.assert_allclose(label_loss(kind, given, torch.tensor([1, 0])).item(), expected, rtol=1e-6)


def test_cross_entropy_of_each_position():
    scores = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    np.testing.assert_allclose(label_loss("scores", scores, torch.tensor([[0, 1]])).item(), expected, rtol=1e-6)


def test_cross_entropy_of_probabilities():
    given = torch.tensor([[0.75], [0.5]])
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    np.testing.assert_allclose(label_loss("probabilities", given, torch.tensor([1, 0])).item(), expected, rtol=1e-6)


def test_squared_error_of_numbers():
    given = torch.tensor([[1.0], [3.0]])
    assert label_loss("numbers", given, torch.tensor([0.0, 1.0])).item() == (1 + 4) / 2


def test_pairing_loss_by_hand():
    # A = ln 3 · ((1, 0), (0, 1)): each row and column gives its own 3/4
    one = torch.eye(2)
    np.testing.assert_allclose(pairing_loss(one, one, math.log(3.0)).item(), -math.log(0.75), rtol=1e-6)


def test_scores_with_real_labels_are_numbers():
    assert task_kind("scores", np.array([0.5])) == "numbers"
    assert task_kind("scores", np.array([1])) == "scores"
    assert task_kind("probabilities", np.array([0.5])) == "probabilities"


def test_labels_of_one_output_and_of_several():
    found = read_labels(labelled(target=[0, 1, 2]), [output("scores", 3)])
    np.testing.assert_array_equal(found["output"], [0, 1, 2])
    several = [output("scores", 3, name="word"), output("numbers", 1, name="loudness", index=1)]
    found = read_labels(labelled(target_loudness=[0.5, 1.0, 2.0]), several)
    assert list(found) == ["loudness"]


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        ({}, [output("scores", 3)], "train set 'toys' has no labels: write it with target="),
        (
            {"target": [0, 1, 2]}, [output("scores", 3, name="a"), output("scores", 3, name="b")],
            r"has the labels \['target'\], and the model the outputs \['a', 'b'\]: write an array target.a",
        ),
        ({"target": ["a", "b", "c"]}, [output("scores", 3)], "labels of 'output' are <U1: label_weight is for class"),
        ({"target": [0, 3, 1]}, [output("scores", 3)], "have 3 for sample 1: the output scores 3 classes, 0 to 2"),
        ({"target": [0, -1, 1]}, [output("scores", 3)], "have -1 for sample 1"),
        ({"target": [[0], [1], [1]]}, [output("scores", 4, 3)], "have 1 numbers a sample, 4 are expected"),
        ({"target": [0.0, 1.0, 0.5]}, [output("numbers", 2)], "have 1 numbers a sample, 2 are expected"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(labels, outputs, message):
    with pytest.raises(CompressError, match=message):
        read_labels(labelled(**labels), outputs)
