from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import CalibrationError, Histogram
from calibration.histogram import SMALLEST_EXPONENT


def floats(dtype: type[np.floating]) -> st.SearchStrategy[np.ndarray]:
    """Arrays over the whole range of the type, and of values close together."""
    width = np.finfo(dtype).bits
    anything = st.floats(width=width, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    near = st.integers(-300, 300).map(lambda value: value / 64)
    return arrays(dtype, st.integers(0, 50), elements=st.one_of(anything, near))


PARTS = st.lists(st.one_of(floats(np.float32), floats(np.float64)), max_size=6)


def state(stat: Histogram) -> tuple[object, ...]:
    return stat.bins, stat.exponent, stat.counts.tobytes(), stat.low, stat.high, stat.count


def reference(values: Sequence[float], bins: int, exponent: int) -> np.ndarray:
    """The definition in exact rational arithmetic."""
    counts = np.zeros(2 * bins - 1, np.int64)
    for value in values:
        counts[int(Fraction(value) * bins / Fraction(2) ** exponent) + bins - 1] += 1  # int() truncates
    return counts


def test_bins_by_hand() -> None:
    # The largest magnitude is 3.5, so the range is (-4, 4), and with 4 bins a side the width is 1:
    # bins (-4,-3] (-3,-2] (-2,-1] (-1,1) [1,2) [2,3) [3,4)
    stat = Histogram.of(np.array([-3.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.99, 2.0, 3.0, 3.5], np.float32), bins=4)
    assert (stat.exponent, stat.width) == (2, 1.0)
    assert stat.counts.tolist() == [1, 0, 1, 3, 2, 1, 2]
    # 5 doubles the range to (-8, 8): width 2, bins (-8,-6] (-6,-4] (-4,-2] (-2,2) [2,4) [4,6) [6,8)
    stat.update(np.array([5.0]))
    assert (stat.exponent, stat.width) == (3, 2.0)
    assert stat.counts.tolist() == [0, 0, 1, 6, 3, 1, 0]
    assert (stat.low, stat.high, stat.count) == (-3.5, 5.0, 11)


@settings(deadline=None)
@given(PARTS, st.sampled_from([2, 8, 64]))
def test_counts_equal_the_definition(parts: list[np.ndarray], bins: int) -> None:
    stat = Histogram.of(*parts, bins=bins)
    values = [float(value) for part in parts for value in part]
    np.testing.assert_array_equal(stat.counts, reference(values, bins, stat.exponent))
    if values:
        assert (stat.low, stat.high) == (min(values), max(values))
        assert max(abs(value) for value in values) < Fraction(2) ** stat.exponent
        assert stat.exponent == SMALLEST_EXPONENT or max(map(abs, values)) >= Fraction(2) ** (stat.exponent - 1)


@settings(deadline=None)
@given(PARTS, st.randoms(), st.integers(0, 50))
def test_bit_equal_in_any_order_split_and_merge(parts: list[np.ndarray], random: object, cut: int) -> None:
    expected = state(Histogram.of(*parts, bins=16))
    shuffled = [piece for part in parts for piece in (part[::-1][:cut], part[::-1][cut:])]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert state(Histogram.of(*shuffled, bins=16)) == expected
    merged = Histogram(bins=16)
    for piece in shuffled:
        merged.merge(Histogram.of(piece, bins=16))
    assert state(merged) == expected
    middle = Histogram.of(*shuffled[:3], bins=16)
    middle.merge(Histogram.of(*shuffled[3:], bins=16))
    assert state(Histogram.from_json(middle.to_json())) == expected


def test_bit_equal_across_chunks() -> None:
    values = np.random.default_rng(7).normal(size=200_000).astype(np.float32)
    parts = np.split(np.sort(values), [3, 70_000, 150_000])
    assert state(Histogram.of(*parts)) == state(Histogram.of(values)) == state(Histogram.of(values.reshape(200, -1).T))


def test_zeros_and_denormals_share_the_centre() -> None:
    zeros = Histogram.of(np.zeros(5, np.float32), bins=4)
    assert (zeros.exponent, zeros.low, zeros.high) == (SMALLEST_EXPONENT, 0.0, 0.0)
    assert zeros.counts.tolist() == [0, 0, 0, 5, 0, 0, 0]
    tiny = Histogram.of(np.array([1e-45, -1e-45], np.float32), np.array([5e-324, -5e-324]), bins=4)
    assert tiny.counts.tolist() == [0, 0, 0, 4, 0, 0, 0]
    assert (tiny.low, tiny.high) == (-float(np.float32(1e-45)), float(np.float32(1e-45)))


def test_one_huge_value_costs_no_memory() -> None:
    stat = Histogram.of(np.linspace(-1, 1, 1000), np.array([np.finfo(np.float64).max, -np.finfo(np.float64).max]))
    assert stat.counts.shape == (4095,)
    assert stat.exponent == 1024
    assert stat.counts[[0, 2047, 4094]].tolist() == [1, 1000, 1]
    assert np.isfinite(stat.width)


def test_a_constant() -> None:
    stat = Histogram.of(np.full(9, 1.5), bins=4)  # range (-2, 2), width 0.5: bin 3
    assert stat.counts.tolist() == [0, 0, 0, 0, 0, 0, 9]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_every_number_type_counts_alike(dtype: type) -> None:
    values = np.array([0, 1, 1, 0, 1])
    assert state(Histogram.of(values.astype(dtype))) == state(Histogram.of(values.astype(np.float64)))


def test_extreme_integers() -> None:
    stat = Histogram.of(np.array([-2**63, 2**63 - 1]), bins=4)
    assert (stat.exponent, stat.counts.sum()) == (64, 2)


def test_an_empty_array_adds_nothing() -> None:
    assert state(Histogram.of(np.zeros((0, 3)))) == state(Histogram())


@pytest.mark.parametrize("bins", [0, 1, 3, 100])
def test_bins_must_be_a_power_of_two(bins: int) -> None:
    with pytest.raises(CalibrationError, match=f"{bins} bins"):
        Histogram(bins)


def test_nan_is_refused_and_nothing_is_added() -> None:
    stat = Histogram.of(np.ones(3))
    before = state(stat)
    with pytest.raises(CalibrationError, match=r"shape \(2, 2\) hold NaN"):
        stat.update(np.array([[1e9, np.nan], [0, 0]]))
    assert state(stat) == before


def test_histograms_of_different_bins_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="4 and 8 bins"):
        Histogram(4).merge(Histogram(8))


def test_json_leaves_out_empty_ends() -> None:
    assert Histogram.of(np.array([1.0, 3.0, 3.5]), bins=4).to_json() == {
        "bins": 4, "exponent": 2, "first": 4, "counts": [1, 0, 2], "extremes": {"low": 1.0, "high": 3.5, "count": 3}}
    assert state(Histogram.from_json(Histogram().to_json())) == state(Histogram())


@pytest.mark.parametrize(("change", "what"), [
    ({"counts": [1, 0, 1]}, "2 values of 3"), ({"counts": [1, -1, 3]}, "3 values of 3"),
    ({"first": -2}, "not a histogram"),
    ({"first": 6}, "ValueError"), ({"exponent": 4000}, "3 values of 3"), ({"bins": None}, "TypeError"),
    ({"counts": [2**70]}, "OverflowError"), ({"extremes": {}}, "not a min-max"),
])
def test_damaged_json(change: dict[str, object], what: str) -> None:
    data = {**Histogram.of(np.array([1.0, 3.0, 3.5]), bins=4).to_json(), **change}
    with pytest.raises(CalibrationError, match=what):
        Histogram.from_json(data)
