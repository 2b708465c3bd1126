from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.tensor import TensorStatistics

ROWS = np.array([[1, -2, 0.5], [3, 0, 0], [0, 0, -7], [2, 2, 2], [1, 1, 1], [0.5, 0, 0]], np.float32)


def of(rows: np.ndarray, first: int = 0, size: int = 2) -> TensorStatistics:
    stat = TensorStatistics()
    for start in range(0, len(rows), size):
        part = rows[start:start + size]
        stat.update(part, range(first + start, first + start + len(part)))
    return stat


def state(stat: TensorStatistics) -> str:
    return json.dumps(stat.to_json())


def test_by_hand() -> None:
    stat = of(ROWS)
    assert (stat.histogram.low, stat.histogram.high, stat.histogram.count) == (-7.0, 3.0, 18)
    assert stat.farthest == [(2, 7.0), (1, 3.0), (0, 2.0), (3, 2.0)]
    assert not stat.still


def test_rows_of_one_sample_in_several_updates_count_as_one() -> None:
    stat = TensorStatistics()
    for step in ROWS:       # the steps of a decoder on samples 0 and 1
        stat.update(np.stack([step, 2 * step]), range(2))
    assert stat.farthest == [(1, 14.0), (0, 7.0)]


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 6), st.integers(1, 40), st.randoms())
def test_the_same_in_any_split_and_merge(cut: int, size: int, count: int, random: object) -> None:
    rows = np.random.default_rng(count).integers(-9, 9, (count, 5)).astype(np.float32)
    expected = of(rows)
    cut = min(cut, count)
    merged = of(rows[cut:], cut, size)
    merged.merge(of(rows[:cut], 0, size))
    for stat in (of(rows, size=size), merged, TensorStatistics.from_json(json.loads(state(expected)))):
        assert stat.farthest == expected.farthest
        assert stat.still == expected.still
        assert stat.histogram.to_json() == expected.histogram.to_json()


@pytest.mark.parametrize(("shape", "step"), [((5, 100, 400), 3), ((2, 4, 128, 128), 1), ((4, 256, 256), 3)])
def test_of_many_values_some_are_counted_from_all_over_and_the_extremes_are_of_all(
    shape: tuple[int, ...], step: int
) -> None:
    """200,000 // 65,536 is 3; 131,072 is twice as many, and every second of them would be in every second column."""
    values = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    values[1].flat[7], values[2].flat[11] = 99.0, -77.0
    rows = values.reshape(3, -1)
    stat = of(rows)
    assert (stat.histogram.low, stat.histogram.high) == (-77.0, 99.0)
    assert stat.farthest[:2] == [(1, 99.0), (2, 77.0)]
    some = rows[:, ::step]
    assert stat.histogram.count == some.size
    assert int(stat.histogram.counts.sum()) == some.size
    assert stat.histogram.moments()[1] == pytest.approx(some.clip(-9, 9).var(), rel=0.15)
    places = np.arange(rows.shape[1])[::step] % shape[-1]
    assert np.bincount(places).min() > 0.99 * len(places) / shape[-1] - 1      # of every column
    assert state(of(rows, size=1)) == state(of(rows, size=3)) == state(stat)


def test_still_until_a_sample_differs_by_more_than_rounding() -> None:
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    stat = of(np.stack([row, row, row * np.float32(1 + 1e-6)]))
    assert stat.still
    again = TensorStatistics.from_json(stat.to_json())
    again.update(row[None], range(3, 4))
    assert again.still
    same_ends = row.copy()
    same_ends[1:-1] = row[1:-1][::-1]
    again.update(same_ends[None], range(4, 5))
    assert not again.still
    assert of(np.zeros((5, 3), np.float32)).still
    assert not of(np.array([[0, 0], [0, 1e-30]], np.float32)).still
    other = of(row[None] * 2)
    other.merge(stat)
    assert not other.still
    empty = TensorStatistics()
    empty.merge(stat)
    assert empty.still
    assert state(empty) == state(stat)


def test_samples_of_other_shapes_differ() -> None:
    stat = of(np.ones((2, 3), np.float32))
    stat.update(np.ones((1, 4), np.float32), range(2, 3))
    assert not stat.still


@pytest.mark.parametrize(("value", "what"), [(np.nan, "hold NaN"), (np.inf, "infinite"), (1e39, "float32 does not")])
def test_what_is_not_finite_names_the_sample_and_adds_nothing(value: float, what: str) -> None:
    stat = of(ROWS)
    before = state(stat)
    rows = np.array([[1.0, 2.0], [3.0, value], [5.0, 1e9]])
    with pytest.raises(CalibrationError, match=f"^sample 101: values of shape .* {what}"):
        stat.update(rows, range(100, 103))
    with pytest.raises(CalibrationError, match=f"^one of the samples 100 to 109: values of shape .* {what}"):
        stat.update(rows[1:2], range(100, 110))
    assert state(stat) == before


def test_an_empty_array_adds_nothing() -> None:
    stat = TensorStatistics()
    stat.update(np.zeros((0, 3), np.float32), range(0))
    assert state(stat) == state(TensorStatistics())


@pytest.mark.parametrize("change", [{"histogram": None}, {"farthest": [1]}, {"first": ["a"]}, {"still": ...}])
def test_damaged_json(change: dict[str, object]) -> None:
    data = {**of(ROWS).to_json(), **change}
    if change == {"still": ...}:
        del data["still"]
    with pytest.raises(CalibrationError, match=r"not the statistics of a tensor|not a histogram"):
        TensorStatistics.from_json(data)
