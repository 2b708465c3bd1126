from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import CalibrationError, Histogram, MinMax, choose_range
from calibration.ranges import NARROWEST


@pytest.mark.parametrize(("values", "expected"), [
    ([-2.5, 1.0], (-2.5, 1.0)), ([3.0, 5.0], (0.0, 5.0)), ([-4.0, -1.0], (-4.0, 0.0)), ([0.0], (0.0, 1.0)),
    ([1e-30, -1e-30], (0.0, 1.0)), ([2.0], (0.0, 2.0)),
])
def test_minmax_always_holds_zero(values: list[float], expected: tuple[float, float]) -> None:
    assert choose_range(MinMax.of(np.array(values))) == expected
    assert choose_range(Histogram.of(np.array(values)), "minmax") == expected
    assert choose_range(Histogram.of(np.array(values)), "percentile", 100) == expected


def test_percentile_of_a_positive_tensor_by_hand() -> None:
    # 8 bins over (-8, 8), width 1. 99 values in [0, 3), one at 7.5. 99 % of 100 allows one to go, all at the top:
    # the last bin left is [2, 3), so the range ends at 3.
    stat = Histogram.of(np.repeat([0.5, 1.5, 2.5], 33), np.array([7.5]), bins=8)
    assert choose_range(stat, "percentile", 99) == (0.0, 3.0)
    assert choose_range(stat, "percentile", 99.5) == (0.0, 7.5)   # less than one value may go


def test_percentile_leaves_out_whole_bins_only() -> None:
    # As above: 34 values lie above 2, so an allowance of 33 keeps the bin [2, 3) and one of 34 drops it.
    stat = Histogram.of(np.repeat([0.5, 1.5, 2.5], 33), np.array([7.5]), bins=8)
    assert choose_range(stat, "percentile", 67) == (0.0, 3.0)
    assert choose_range(stat, "percentile", 66) == (0.0, 2.0)


def test_percentile_of_a_signed_tensor_takes_half_from_either_end() -> None:
    # Width 1 again. 2 % of 100 is two values, one at either end.
    values = np.concatenate([[-7.5], np.full(49, -1.5), np.full(49, 2.5), [6.5]])
    stat = Histogram.of(values, bins=8)
    assert choose_range(stat, "percentile", 98) == (-2.0, 3.0)
    assert choose_range(stat, "percentile", 99) == (-7.5, 6.5)    # one value is no half at either end


def test_percentile_of_a_negative_tensor() -> None:
    stat = Histogram.of(np.concatenate([[-7.5], np.full(99, -2.5)]), bins=8)
    assert choose_range(stat, "percentile", 99) == (-3.0, 0.0)


def test_percentile_keeps_zero_where_it_is_left_out() -> None:
    # 98 of 100 values are near 7: the allowance of two may drop -1 and one of the others, yet the range holds zero.
    stat = Histogram.of(np.concatenate([[-1.5], np.full(99, 7.25)]), bins=8)
    assert choose_range(stat, "percentile", 98) == (0.0, 7.25)


def test_the_decimal_percentile_is_exact() -> None:
    # 10,000 values at 99.99 %: exactly one may go. 9,999 values: none may.
    many = np.concatenate([np.full(9_998, 0.5), [1.5, 7.5]])
    assert choose_range(Histogram.of(many, bins=8), "percentile", 99.99) == (0.0, 2.0)
    assert choose_range(Histogram.of(many[1:], bins=8), "percentile", 99.99) == (0.0, 7.5)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(-1000, 1000, width=32)),
       st.sampled_from([51.0, 90.0, 99.0, 99.9]))
def test_the_share_is_kept(values: np.ndarray, percentile: float) -> None:
    low, high = choose_range(Histogram.of(values, bins=32), "percentile", percentile)
    kept = np.count_nonzero((values >= low - NARROWEST) & (values <= high))  # what is nearer to zero counts as zero
    assert kept * 100 >= values.size * percentile - 1e-9
    assert low <= 0 <= high
    assert low < high
    whole = choose_range(MinMax.of(values))
    assert (low, high) == (0.0, 1.0) or (whole[0] <= low and high <= whole[1])


def test_one_enormous_value_does_not_set_the_percentile_range() -> None:
    # The outlier sets the bin width to 2^20 / 2048 = 512, which is then the resolution of the answer.
    stat = Histogram.of(np.full(99_999, 1.0), np.array([1e6]))
    assert choose_range(stat, "percentile", 99.99) == (0.0, 512.0)
    assert choose_range(stat) == (0.0, 1e6)


@pytest.mark.parametrize("percentile", [50, 0, -1, 100.1, float("nan")])
def test_percentile_must_be_a_share(percentile: float) -> None:
    with pytest.raises(CalibrationError, match="percentile is"):
        choose_range(Histogram.of(np.ones(3)), "percentile", percentile)


def test_unknown_method() -> None:
    with pytest.raises(CalibrationError, match="'magic'"):
        choose_range(MinMax.of(np.ones(3)), "magic")  # type: ignore[arg-type]


def test_percentile_needs_a_histogram() -> None:
    with pytest.raises(CalibrationError, match=r"encoder\.fc1: .*histogram"):
        choose_range(MinMax.of(np.ones(3)), "percentile", name="encoder.fc1")


@pytest.mark.parametrize("stat", [MinMax(), Histogram()])
def test_no_values(stat: MinMax | Histogram) -> None:
    with pytest.raises(CalibrationError, match=r"encoder\.fc1 received no values"):
        choose_range(stat, name="encoder.fc1")
