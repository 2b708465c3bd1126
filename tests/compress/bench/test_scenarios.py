"""How many samples a query has, and what it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from compress.bench.record import Scenario
from compress.bench.scenarios import query_feed, query_samples
from compress.errors import CompressError
from runtimes.spec import Dim, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, 16), 2))
TIME_FIRST = TensorSpec(name="sound", dtype="float32", shape=(3, Dim("batch", 1, 1, 16)), batch_axis=1)
TABLE = TensorSpec(name="table", dtype="float32", shape=(3,), batch_axis=None)


@pytest.mark.parametrize(("scenario", "largest", "samples"), [
    ("single_stream", 16, 1), ("multi_stream", 16, 8), ("multi_stream", 1, 8), ("offline", 16, 16),
    ("offline", 500, 64), ("offline", 1, 1)])  # fmt: skip
def test_samples_of_a_query(scenario: Scenario, largest: int, samples: int) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, largest), 2))
    assert query_samples(scenario, [spec]) == samples


def test_too_few_samples_are_repeated_along_each_batch_axis() -> None:
    feed = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "sound": np.arange(9, dtype=np.float32).reshape(3, 3),
            "table": np.ones(3, np.float32)}  # fmt: skip
    query = query_feed(feed, [X, TIME_FIRST, TABLE], 8)
    order = [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(query["x"], feed["x"][order])
    np.testing.assert_array_equal(query["sound"], feed["sound"][:, order])
    np.testing.assert_array_equal(query["table"], feed["table"])


def test_the_first_are_taken_of_too_many() -> None:
    np.testing.assert_array_equal(query_feed({"x": np.eye(2)[[0, 1, 1]]}, [X], 1)["x"], [[1, 0]])


@pytest.mark.parametrize("sizes", [(0, 0), (2, 3)])
def test_a_feed_needs_samples(sizes: tuple[int, int]) -> None:
    feed = {"x": np.zeros((sizes[0], 2)), "sound": np.zeros((3, sizes[1]))}
    with pytest.raises(CompressError, match=f"many of each input: got {{'x': {sizes[0]}, 'sound': {sizes[1]}}}"):
        query_feed(feed, [X, TIME_FIRST], 8)
