from __future__ import annotations

import dataclasses

import numpy as np
import torch

from compress.prune.groups import Edit, Group
from compress.prune.magnitude import magnitude


def test_the_squared_weights_on_both_sides(networks):
    module, group = networks.pair()
    np.testing.assert_allclose(magnitude(module, [group])[0], [1 + 25, 9 + 49])


def test_a_unit_sums_its_channels(networks):
    module, group = networks.pair()
    edits = tuple(dataclasses.replace(edit, index=((0, 1),)) for edit in group.edits)
    whole = dataclasses.replace(group, units=1, edits=edits)
    np.testing.assert_allclose(magnitude(module, [whole])[0], [1 + 9 + 25 + 49])


def test_a_hidden_unit_of_a_recurrent_layer_has_rows_in_all_gates_and_directions():
    lstm = torch.nn.LSTM(2, 3, bidirectional=True)
    edit = Edit(path="", role="out", index=((0,), (1,), (2,)))
    with torch.no_grad():
        for name, weight in lstm.named_parameters():
            weight.fill_(0)
            if name == "weight_ih_l0":
                weight[[1, 4, 7, 10]] = torch.tensor([1.0, 2.0])  # unit 1 in the four gates
            if name == "weight_hh_l0_reverse":
                weight[2, 0] = 3
    scores = magnitude(lstm, [Group(name="", kind="recurrent", units=3, edits=(edit,))])[0]
    np.testing.assert_allclose(scores, [0, 4 * 5, 9])


def test_a_parameter_that_is_one_vector():
    module = torch.nn.Module()
    module.gamma = torch.nn.Parameter(torch.tensor([3.0, -1.0, 2.0]))
    edit = Edit(path="", role="out", index=((0,), (1,), (2,)), tensor="gamma")
    (scores,) = magnitude(module, [Group(name="gamma", kind="channels", units=3, edits=(edit,))])
    np.testing.assert_allclose(scores, [9, 1, 4])
