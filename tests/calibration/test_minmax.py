from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import CalibrationError, MinMax

VALUES = arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def test_extremes_by_hand() -> None:
    stat = MinMax.of(np.array([[3, -2], [0, 1]], np.float32), np.array([7], np.int8), np.zeros((0, 4)))
    assert stat == MinMax(low=-2.0, high=7.0, count=5)


def test_negative_zero_is_zero() -> None:
    for order in ([-0.0, 0.0], [0.0, -0.0]):
        stat = MinMax.of(*[np.array([value]) for value in order])
        assert not np.signbit(stat.low)
        assert not np.signbit(stat.high)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=5), st.randoms())
def test_order_and_split_make_no_difference(parts: list[np.ndarray], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = MinMax()
    for part in shuffled:
        merged.merge(MinMax.of(part))
    assert merged == MinMax.of(*parts) == MinMax.of(np.concatenate([np.zeros(0, np.float32), *parts]))
    assert MinMax.from_json(merged.to_json()) == merged


@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_values_that_are_not_finite_are_refused(bad: float, what: str) -> None:
    stat = MinMax.of(np.array([1.0]))
    with pytest.raises(CalibrationError, match=what):
        stat.update(np.array([5.0, bad, 2.0]))
    assert stat == MinMax(1.0, 1.0, 1)


def test_complex_values_are_refused() -> None:
    with pytest.raises(CalibrationError, match="complex128"):
        MinMax.of(np.array([1j]))


@pytest.mark.parametrize("data", [{}, {"count": 1, "low": 0.0}, {"count": "x"}])
def test_damaged_json(data: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="not a min-max statistic"):
        MinMax.from_json(data)


@pytest.mark.parametrize("data", [{"count": 2, "low": 1.0, "high": 0.0}, {"count": -1, "low": 0.0, "high": 1.0}])
def test_json_that_is_no_range(data: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="is no range"):
        MinMax.from_json(data)
