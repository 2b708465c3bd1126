from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import CalibrationError, Histogram, MinMax, choose_range
from calibration.ranges import NARROWEST, Grid, RangeMethod, _divergence


@pytest.mark.parametrize(("values", "expected"), [
    ([-2.5, 1.0], (-2.5, 1.0)), ([3.0, 5.0], (0.0, 5.0)), ([-4.0, -1.0], (-4.0, 0.0)), ([0.0], (0.0, 1.0)),
    ([1e-30, -1e-30], (0.0, 1.0)), ([2.0], (0.0, 2.0)),
])
def test_minmax_always_holds_zero(values: list[float], expected: tuple[float, float]) -> None:
    assert choose_range(MinMax.of(np.array(values))) == expected
    assert choose_range(Histogram.of(np.array(values)), "minmax") == expected
    assert choose_range(Histogram.of(np.array(values)), "percentile", 100) == expected


def test_percentile_of_a_positive_tensor_by_hand() -> None:
    # 99 values below 3, one at 7.5. 99 % of 100 allows one to go, all at the top: the last bin left is that of 2.5,
    # [2.5, 2.5 + 1/64), and the range ends with it.
    stat = Histogram.of(np.repeat([0.5, 1.5, 2.5], 33), np.array([7.5]))
    assert choose_range(stat, "percentile", 99) == (0.0, 2.5 + 1 / 64)
    assert choose_range(stat, "percentile", 99.5) == (0.0, 7.5)   # less than one value may go


def test_percentile_leaves_out_whole_bins_only() -> None:
    # As above: 34 values lie above 2, so an allowance of 33 keeps the bin of 2.5 and one of 34 drops it.
    stat = Histogram.of(np.repeat([0.5, 1.5, 2.5], 33), np.array([7.5]))
    assert choose_range(stat, "percentile", 67) == (0.0, 2.5 + 1 / 64)
    assert choose_range(stat, "percentile", 66) == (0.0, 1.5 + 1 / 128)


def test_percentile_of_a_signed_tensor_takes_half_from_either_end() -> None:
    # 2 % of 100 is two values, one at either end.
    values = np.concatenate([[-7.5], np.full(49, -1.5), np.full(49, 2.5), [6.5]])
    stat = Histogram.of(values)
    assert choose_range(stat, "percentile", 98) == (-1.5 - 1 / 128, 2.5 + 1 / 64)
    assert choose_range(stat, "percentile", 99) == (-7.5, 6.5)    # one value is no half at either end


def test_percentile_of_a_negative_tensor() -> None:
    stat = Histogram.of(np.concatenate([[-7.5], np.full(99, -2.5)]))
    assert choose_range(stat, "percentile", 99) == (-2.5 - 1 / 64, 0.0)


def test_percentile_keeps_zero_where_it_is_left_out() -> None:
    # 98 of 100 values are near 7: the allowance of two may drop -1 and one of the others, yet the range holds zero.
    stat = Histogram.of(np.concatenate([[-1.5], np.full(99, 7.25)]))
    assert choose_range(stat, "percentile", 98) == (0.0, 7.25)


def test_the_decimal_percentile_is_exact() -> None:
    # 10,000 values at 99.99 %: exactly one may go. 9,999 values: none may.
    many = np.concatenate([np.full(9_998, 0.5), [1.5, 7.5]])
    assert choose_range(Histogram.of(many), "percentile", 99.99) == (0.0, 1.5 + 1 / 128)
    assert choose_range(Histogram.of(many[1:]), "percentile", 99.99) == (0.0, 7.5)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(-1000, 1000, width=32)),
       st.sampled_from([51.0, 90.0, 99.0, 99.9]))
def test_the_share_is_kept(values: np.ndarray, percentile: float) -> None:
    low, high = choose_range(Histogram.of(values), "percentile", percentile)
    kept = np.count_nonzero((values >= low - NARROWEST) & (values <= high))  # what is nearer to zero counts as zero
    assert kept * 100 >= values.size * percentile - 1e-9
    assert low <= 0 <= high
    assert low < high
    whole = choose_range(MinMax.of(values))
    assert (low, high) == (0.0, 1.0) or (whole[0] <= low and high <= whole[1])


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_enormous_value_does_not_set_the_range(method: RangeMethod) -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    alone, among = Histogram.of(values), Histogram.of(values, np.array([1e6]))
    assert choose_range(among) == (values.astype(np.float32).min(), 1e6)
    np.testing.assert_allclose(choose_range(among, method), choose_range(alone, method), rtol=0.15)


# --- least error ---------------------------------------------------------------------------------------------------


def error_of(values: np.ndarray, limits: tuple[float, float], grid: Grid) -> float:
    """The mean squared error of a real quantizer on the grid."""
    low, high = limits
    if grid.symmetric:
        step = max(-low, high) / 127
        integers = np.clip(np.round(values / step), -128, 127)
    else:
        step = (high - low) / 255
        zero = round(-low / step)
        integers = np.clip(np.round(values / step) + zero, 0, 255) - zero
    return float(np.mean((integers * step - values) ** 2))


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=50_000),
    "laplace": lambda rng: rng.laplace(size=50_000),
    "heavy": lambda rng: rng.standard_t(3, size=50_000),
    "relu": lambda rng: np.maximum(rng.normal(size=50_000), 0),
    "gelu": lambda rng: (x := 2 * rng.normal(size=50_000)) * (1 + np.tanh(0.8 * x)) / 2,
    "negative": lambda rng: -np.abs(rng.normal(size=50_000)),
    "skew": lambda rng: rng.gamma(2.0, size=50_000) - 0.3,
}


@pytest.mark.parametrize("grid", [Grid(), Grid(symmetric=True)], ids=["affine", "symmetric"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_least_error_is_that_of_a_search_over_real_quantizers(name: str, grid: Grid) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(3)).astype(np.float32)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(0.05, 1, 60)
    tried = ((low * a, high * b) for a in shares for b in (shares if low * high < 0 and not grid.symmetric else [1.0]))
    if grid.symmetric or low * high == 0:
        tried = ((max(low, -end), min(high, end)) for end in shares * max(-low, high))
    least = min(error_of(values, limits, grid) for limits in tried)
    found = error_of(values, choose_range(Histogram.of(values), "mse", grid=grid), grid)
    assert found <= least * 1.05
    assert found <= error_of(values, choose_range(Histogram.of(values)), grid) * 1.01


def test_what_the_grid_holds_exactly_is_kept_whole() -> None:
    for values in ([2.5] * 9, [0.0, -4.0], [1.0, 2.0, 3.0, -5.0]):
        stat = Histogram.of(np.array(values))
        assert choose_range(stat, "mse") == choose_range(stat)


# --- least divergence ----------------------------------------------------------------------------------------------


def test_divergence_by_hand() -> None:
    # Two levels of width 1 over four bins of width 1/2: the counts 3, 1 share level 0 and become 2, 2; of 4, 0 in
    # level 1 only the bin that holds values gets any. Nothing is clipped.
    counts, edges = np.array([3, 1, 4, 0]), np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    expected = 3 / 8 * np.log(3 / 2) + 1 / 8 * np.log(1 / 2)
    assert _divergence(counts, edges, 4, 2.0, 2) == pytest.approx(expected)
    # Up to 1, on two levels: each bin is a level of its own, and the four values beyond count in the last: 3, 5 of 8
    # against 3, 1 of 4.
    expected = 3 / 8 * np.log((3 / 8) / (3 / 4)) + 5 / 8 * np.log((5 / 8) / (1 / 4))
    assert _divergence(counts, edges, 2, 1.0, 2) == pytest.approx(expected)


def test_entropy_clips_a_thin_tail_and_keeps_a_flat_end() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(-1, 1, 100_000)
    low, high = choose_range(Histogram.of(flat), "entropy")
    assert low < -0.98
    assert high > 0.98
    low, high = choose_range(Histogram.of(rng.normal(size=100_000), np.linspace(30, 40, 20)), "entropy")
    assert 3 < high < 10


@pytest.mark.parametrize("percentile", [50, 0, -1, 100.1, float("nan")])
def test_percentile_must_be_a_share(percentile: float) -> None:
    with pytest.raises(CalibrationError, match="percentile is"):
        choose_range(Histogram.of(np.ones(3)), "percentile", percentile)


def test_unknown_method() -> None:
    with pytest.raises(CalibrationError, match="'magic'"):
        choose_range(MinMax.of(np.ones(3)), "magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_all_but_minmax_need_a_histogram(method: RangeMethod) -> None:
    with pytest.raises(CalibrationError, match=rf"encoder\.fc1: the range method '{method}' needs a histogram"):
        choose_range(MinMax.of(np.ones(3)), method, name="encoder.fc1")


@pytest.mark.parametrize("stat", [MinMax(), Histogram()])
def test_no_values(stat: MinMax | Histogram) -> None:
    with pytest.raises(CalibrationError, match=r"encoder\.fc1 received no values"):
        choose_range(stat, name="encoder.fc1")
