"""The losses by hand, one output's and several outputs' together."""

import itertools
import math

import numpy as np
import pytest
import torch

from compress.zoo.tasks import Task, by_task, constant_answer, encoded, loss_of

CLASSES = {"output": Task(loss="cross-entropy", labels=("a", "b"))}
DECISION = {"output": Task(loss="binary cross-entropy", labels=("no", "yes"))}
NUMBER = {"output": Task(loss="mean squared error")}


def test_cross_entropy_by_hand():
    scores = torch.tensor([[0.0, math.log(3.0)]])       # softmax: 1/4, 3/4
    assert float(loss_of({"output": scores}, torch.tensor([0]), CLASSES)) == pytest.approx(math.log(4))


def test_cross_entropy_of_a_sequence_is_the_mean_over_its_steps():
    scores = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    expected = (math.log(4) + math.log(2)) / 2
    assert float(loss_of({"output": scores}, torch.tensor([[0, 1]]), CLASSES)) == pytest.approx(expected)


def test_binary_cross_entropy_by_hand():
    probability = torch.tensor([[0.25], [0.5]])
    expected = (math.log(4) + math.log(2)) / 2
    assert float(loss_of({"output": probability}, torch.tensor([1, 0]), DECISION)) == pytest.approx(expected)


def test_mean_squared_error_by_hand():
    assert float(loss_of({"output": torch.tensor([[1.0], [4.0]])}, torch.tensor([2.0, 2.0]), NUMBER)) == 2.5


def test_several_outputs_have_a_column_of_the_targets_each_and_a_weight():
    tasks = {"brake": DECISION["output"], "angle": Task(loss="mean squared error", weight=10.0)}
    outputs = {"angle": torch.tensor([[3.0]]), "brake": torch.tensor([[0.25]])}
    assert float(loss_of(outputs, torch.tensor([[1.0, 2.0]]), tasks)) == pytest.approx(math.log(4) + 10)


def test_ctc_against_every_path():
    """The likelihood of "on off" over three frames: the sum over the paths of frames that collapse to it."""
    labels = ("", "on", "off")
    tasks = {"said": Task(loss="ctc", labels=labels)}
    scores = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 3)))
    target = encoded({"said": np.array(["on off", "off"])}, tasks)
    assert target["said"].tolist() == [[1, 2], [2, 0]]
    shares = torch.softmax(scores, dim=-1).numpy()
    losses = []
    for sample, words in enumerate(([1, 2], [2])):
        paths = [path for path in itertools.product(range(3), repeat=3)
                 if [word for at, word in enumerate(path) if word and (at == 0 or word != path[at - 1])] == words]
        likelihood = sum(np.prod([shares[sample, frame, word] for frame, word in enumerate(path)]) for path in paths)
        losses.append(-np.log(likelihood) / len(words))      # torch's mean is over the words of each
    found = loss_of({"said": scores}, {"said": torch.from_numpy(target["said"])}, tasks)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_targets_by_output_are_taken_as_they_are():
    target = {"action": np.array([1, 0]), "said": np.array(["a", "b a"])}
    tasks = {"action": Task(loss="cross-entropy", labels=("x", "y")), "said": Task(loss="ctc", labels=("", "a", "b"))}
    assert by_task(target, tasks) == target
    found = encoded(target, tasks)
    assert found["action"] is target["action"]
    assert found["said"].tolist() == [[1, 0], [2, 1]]
    assert encoded(target["action"], {"output": tasks["action"]}) is target["action"]


def test_the_constant_answer_is_the_most_frequent_class_and_the_mean():
    kind = Task(loss="cross-entropy", labels=("a", "b", "c"))
    tasks = {"kind": kind, "brake": DECISION["output"], "angle": NUMBER["output"]}
    target = np.array([[2, 0, 1.0], [2, 0, 2.0], [1, 1, 6.0]])
    answer = constant_answer(target, tasks, 2)
    np.testing.assert_array_equal(answer["kind"], [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(answer["brake"], [[0]] * 2)
    np.testing.assert_array_equal(answer["angle"], [[3]] * 2)
