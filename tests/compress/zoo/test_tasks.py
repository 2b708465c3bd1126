"""The losses by hand, one output's and several outputs' together."""

import math

import pytest
import torch

from compress.zoo.tasks import Task, loss_of

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
