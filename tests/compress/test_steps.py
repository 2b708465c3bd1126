"""What each graph of a model is run on: of a decoder the first, one about the middle, and the last of its steps."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest

from compress import steps
from compress.model import Model
from compress.steps import graph_feeds, split, watch
from runtimes.spec import Feed
from tests.compress import captioner


@pytest.fixture(scope="module")
def model() -> Model:
    return captioner.model()


@pytest.mark.parametrize(("runs", "kept"), [
    (1, [0]), (2, [0, 1]), (3, [0, 2]), (4, [0, 2, 3]), (8, [0, 4, 7]), (9, [0, 8]), (448, [0, 256, 447])])
def test_which_steps_are_kept(model: Model, runs: int, kept: list[int]) -> None:
    def watched(model: Model, feed: Feed, told: object) -> None:
        for run in range(runs):
            told("decoder", run, {"run": np.array(run)})        # type: ignore[operator]

    with mock.patch.object(steps, "watch", watched):
        assert [int(feed["run"]) for feed in graph_feeds(model, {})["decoder"]] == kept


def test_they_are_the_chains_own(model: Model) -> None:
    feed = {"image": captioner.pictures(2)}
    every: dict[str, list[Feed]] = {"encoder": [], "decoder": []}
    watch(model, feed, lambda graph, run, given: every[graph].append(given))
    some = graph_feeds(model, feed)
    assert [len(some["encoder"]), len(some["decoder"])] == [1, 3]
    for given, step in zip(some["decoder"], (0, 4, len(every["decoder"]) - 1), strict=True):
        for name, value in every["decoder"][step].items():
            np.testing.assert_array_equal(given[name], value)


def test_without_a_chain_each_graph_takes_what_it_names(model: Model) -> None:
    alone = dataclasses.replace(model, chain=None)
    found = graph_feeds(alone, model.example)
    assert found.keys() == split(model, model.example).keys()
    assert list(found["encoder"][0]) == ["image"]
    assert list(found["decoder"][0]) == ["ids", "memory", "past_key", "past_value"]
