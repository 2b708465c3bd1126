from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import CalibrationError, Histogram
from calibration.histogram import OCTAVES, PER_OCTAVE, SIDE, SMALLEST_EXPONENT


def floats(dtype: type[np.floating]) -> st.SearchStrategy[np.ndarray]:
    """Arrays over the whole range of float32, and of values close together."""
    anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
    near = st.integers(-300, 300).map(lambda value: value / 64)
    return arrays(dtype, st.integers(0, 50), elements=st.one_of(anything, near))


PARTS = st.lists(st.one_of(floats(np.float32), floats(np.float64)), max_size=6)


def state(stat: Histogram) -> tuple[object, ...]:
    return stat.exponent, stat.counts.tobytes(), stat.low, stat.high, stat.count


def bin_of(value: float, exponent: int) -> int:
    """The definition in exact rational arithmetic."""
    size = abs(Fraction(value))
    smallest = Fraction(2) ** (exponent - OCTAVES)
    if size < smallest:
        return 0
    octave = 0
    while size >= smallest * 2 ** (octave + 1):
        octave += 1
    place = octave * PER_OCTAVE + int((size / (smallest * 2**octave) - 1) * PER_OCTAVE) + 1
    return place if value > 0 else -place


def filled(stat: Histogram) -> dict[int, int]:
    return {int(index) - SIDE: int(stat.counts[index]) for index in np.flatnonzero(stat.counts)}


def test_bins_by_hand() -> None:
    # The largest magnitude is 3.5, so e = 2, and the last octave is [2, 4), in bins of 1/64: the last is [4 - 1/64, 4).
    stat = Histogram.of(np.array([3.5, -3.5, 2.0, 2.01, 1.0, 0.0, 1e-12, -1e-12], np.float32))
    assert stat.exponent == 2
    last, before = SIDE - PER_OCTAVE + 1, SIDE - 2 * PER_OCTAVE + 1     # the first bins of the last two octaves
    # 3.5 is 96/64 above 2; 2.01 is in the bin of 2; 1e-12 is below 2^(2 - 32).
    assert filled(stat) == {last + 96: 1, -(last + 96): 1, last: 2, before: 1, 0: 3}
    np.testing.assert_array_equal(stat.edges[[last - 1, last, last + 95, SIDE]], [2.0, 2 + 1 / 64, 3.5, 4.0])
    # 5 moves every bin down by an octave; 1 is one above it still.
    stat.update(np.array([5.0]))
    assert stat.exponent == 3
    assert filled(stat) == {last + 32: 1, before + 96: 1, -(before + 96): 1, before: 2, before - PER_OCTAVE: 1, 0: 3}
    assert (stat.low, stat.high, stat.count) == (-3.5, 5.0, 9)


@settings(deadline=None)
@given(PARTS)
def test_counts_equal_the_definition(parts: list[np.ndarray]) -> None:
    stat = Histogram.of(*parts)
    values = [float(value) for part in parts for value in part]
    expected: dict[int, int] = {}
    for value in values:
        place = bin_of(value, stat.exponent)
        expected[place] = expected.get(place, 0) + 1
    assert filled(stat) == expected
    if values:
        assert (stat.low, stat.high) == (min(values), max(values))
        assert max(abs(value) for value in values) < Fraction(2) ** stat.exponent
        assert stat.exponent == SMALLEST_EXPONENT or max(map(abs, values)) >= Fraction(2) ** (stat.exponent - 1)


@settings(deadline=None)
@given(st.floats(2.0 ** -30, 1, width=32, exclude_max=True))
def test_a_value_is_between_the_edges_of_its_bin(value: float) -> None:
    stat = Histogram.of(np.array([value, 1.0], np.float32))
    place = min(filled(stat))
    edges = stat.edges
    assert edges[place - 1] <= value < edges[place]
    assert edges[place] - edges[place - 1] <= value / PER_OCTAVE


@settings(deadline=None)
@given(PARTS, st.randoms(), st.integers(0, 50))
def test_bit_equal_in_any_order_split_and_merge(parts: list[np.ndarray], random: object, cut: int) -> None:
    expected = state(Histogram.of(*parts))
    shuffled = [piece for part in parts for piece in (part[::-1][:cut], part[::-1][cut:])]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert state(Histogram.of(*shuffled)) == expected
    merged = Histogram()
    for piece in shuffled:
        merged.merge(Histogram.of(piece))
    assert state(merged) == expected
    middle = Histogram.of(*shuffled[:3])
    middle.merge(Histogram.of(*shuffled[3:]))
    assert state(Histogram.from_json(middle.to_json())) == expected


def test_bit_equal_across_chunks() -> None:
    values = np.random.default_rng(7).normal(size=200_000).astype(np.float32)
    parts = np.split(np.sort(values), [3, 70_000, 150_000])
    assert state(Histogram.of(*parts)) == state(Histogram.of(values)) == state(Histogram.of(values.reshape(200, -1).T))


def test_asking_for_the_counts_in_between_changes_nothing() -> None:
    values = np.random.default_rng(8).normal(size=150_000).astype(np.float32)
    stat = Histogram()
    for part in np.split(values, [10, 40_000, 40_001, 110_000]):
        stat.update(part, (float(part.min()), float(part.max())))
        assert stat.counts.sum() == stat.count
    assert state(stat) == state(Histogram.of(values))


@settings(deadline=None)
@given(PARTS, st.randoms())
def test_moments_are_bit_equal_and_within_a_bin_of_the_exact_ones(parts: list[np.ndarray], random: object) -> None:
    values = [float(np.float32(value)) for part in parts for value in part]
    stat = Histogram.of(*parts)
    if not values:
        with pytest.raises(CalibrationError, match="a histogram without values has no mean"):
            stat.moments()
        return
    mean, variance = stat.moments()
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert Histogram.of(*parts).moments() == (mean, variance)
    size = sum(abs(Fraction(value)) for value in values) / len(values)
    exact = sum(Fraction(value) for value in values) / len(values)
    smallest = Fraction(2) ** (stat.exponent - OCTAVES)     # what is nearer to zero counts as zero
    assert abs(Fraction(mean) - exact) <= size / 256 + smallest
    spread = sum((Fraction(value) - exact) ** 2 for value in values) / len(values)
    squares = sum(Fraction(value) ** 2 for value in values) / len(values)
    assert abs(Fraction(variance) - spread) <= squares / 32 + smallest * size * 4 + smallest**2 * 4


def test_moments_by_hand() -> None:
    # 1 and 3 are the first values of bins of width 1/128 and 1/64, whose middles are 1/256 and 1/128 above.
    stat = Histogram.of(np.array([1.0, 3.0, -3.0, 0.0], np.float32))
    assert stat.moments()[0] == (1 + 1 / 256) / 4
    assert stat.moments()[1] == pytest.approx(19 / 4 - 1 / 16, rel=1 / 100)


@settings(deadline=None)
@given(floats(np.float32), st.integers(0, 64), st.integers(0, 64))
def test_what_is_outside_a_range_that_ends_at_edges(values: np.ndarray, below: int, above: int) -> None:
    low, high = -below / 64, above / 64      # ends that are edges of bins of all histograms that reach less than 2^26
    values = values[(np.abs(values) < 2.0**25) & ((values != low) & (values != high) | (values == 0))]
    expected = np.count_nonzero((values < low - 2.0**-7) | (values > high + 2.0**-7))
    inside = np.count_nonzero((values >= low) & (values <= high))
    found = Histogram.of(values).outside(low, high)
    assert expected <= found <= values.size - inside


def test_outside_by_hand() -> None:
    stat = Histogram.of(np.array([-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 4.0], np.float32))
    assert (stat.outside(-2.0, 4.0), stat.outside(-1.5, 3.0), stat.outside(0.0, 0.75), stat.outside(0.0, 1.5)) == (
        0, 2, 4, 3)  # fmt: skip


def test_zeros_and_denormals_share_the_centre() -> None:
    zeros = Histogram.of(np.array([0.0, -0.0, 0.0], np.float32))
    assert (zeros.exponent, zeros.low, zeros.high, filled(zeros)) == (SMALLEST_EXPONENT, 0.0, 0.0, {0: 3})
    tiny = Histogram.of(np.array([1e-45, -1e-45], np.float32), np.array([5e-324, -5e-324]))
    assert filled(tiny) == {0: 4}
    assert (tiny.low, tiny.high) == (-float(np.float32(1e-45)), float(np.float32(1e-45)))


def test_one_huge_value_costs_neither_memory_nor_the_bins_of_the_others() -> None:
    stat = Histogram.of(np.linspace(1, 2, 1000, endpoint=False), np.array([1e6]))
    assert stat.counts.shape == (2 * SIDE + 1,)
    assert len(filled(stat)) == PER_OCTAVE + 1
    largest = float(np.finfo(np.float32).max)
    assert Histogram.of(np.array([largest, -largest, 1.0])).exponent == 128


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_what_float32_does_not_hold_is_refused(value: float) -> None:
    stat = Histogram.of(np.ones(3))
    with pytest.raises(CalibrationError, match=r"values of shape \(2,\) hold .*e\+.*, which float32 does not"):
        stat.update(np.array([1.0, value]))
    assert stat.count == 3


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_every_number_type_counts_alike(dtype: type) -> None:
    values = np.array([0, 1, 1, 0, 1])
    assert state(Histogram.of(values.astype(dtype))) == state(Histogram.of(values.astype(np.float64)))


def test_extreme_integers() -> None:
    stat = Histogram.of(np.array([-2**63, 2**63 - 1]))      # as float32 both are 2^63 large
    assert (stat.exponent, stat.counts.sum(), stat.high) == (64, 2, 2.0**63)


def test_an_empty_array_adds_nothing() -> None:
    assert state(Histogram.of(np.zeros((0, 3)))) == state(Histogram())


def test_nan_is_refused_and_nothing_is_added() -> None:
    stat = Histogram.of(np.ones(3))
    before = state(stat)
    with pytest.raises(CalibrationError, match=r"shape \(2, 2\) hold NaN"):
        stat.update(np.array([[1e9, np.nan], [0, 0]]))
    assert state(stat) == before


def test_json_leaves_out_empty_ends() -> None:
    first = SIDE + SIDE - 2 * PER_OCTAVE + 1
    data = Histogram.of(np.array([1.0, 1.0, 1 + 2 / 128])).to_json()
    expected = {"per_octave": 128, "octaves": 32, "exponent": 1, "first": first + PER_OCTAVE, "counts": [2, 0, 1],
                "extremes": {"low": 1.0, "high": 1.015625, "count": 3}}  # fmt: skip
    assert data == expected
    assert state(Histogram.from_json(Histogram().to_json())) == state(Histogram())


@pytest.mark.parametrize(("change", "what"), [
    ({"counts": [1, 0, 1]}, "2 values of 3"), ({"counts": [1, -1, 3]}, "3 values of 3"),
    ({"first": -2}, "not a histogram"), ({"octaves": 16}, "of other bins than this release's"),
    ({"first": 9000}, "ValueError"), ({"exponent": 4000}, "3 values of 3"), ({"per_octave": None}, "other bins"),
    ({"counts": [2**70]}, "OverflowError"), ({"extremes": {}}, "not a min-max"), ({"exponent": None}, "TypeError"),
])
def test_damaged_json(change: dict[str, object], what: str) -> None:
    data = {**Histogram.of(np.array([1.0, 1.0, 1 + 2 / 128])).to_json(), **change}
    with pytest.raises(CalibrationError, match=what):
        Histogram.from_json(data)
