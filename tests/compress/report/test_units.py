
import pytest

from compress.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.34, "12.3"),
        (9.996, "10.0"),
        (1234.5, "1,230"),
        (0.04567, "0.0457"),
        (-3.456, "−3.46"),
        (3.1e-6, "3.10×10⁻⁶"),
        (99.95, "100"),
        (2e16, "2.00×10¹⁶"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert units.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.0, "2"), (97.5, "97.5"), (0, "0"), (-0.2, "−0.2"), (0.25, "0.25")])
def test_ticks_have_no_idle_zeros(value: float, text: str) -> None:
    assert units.bare(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (640, "640 B"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (4_560_000, "4.56 MB"),
        (2.5e12, "2,500 GB"),
    ],
)
def test_sizes_are_decimal(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(36, "36"), (37_000, "37.0 k"), (75_037_000, "75.0 M"), (1.2e9, "1.20 G")])
def test_counts(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.42 s"), (11.94, "11.9 s"), (148.2, "2 min 28 s"), (3725, "1 h 02 min")]
)
def test_durations(value: float, text: str) -> None:
    assert units.seconds(value) == text


def test_a_drop_is_told_as_a_change_with_its_interval_turned_round() -> None:
    share, number = units.Unit(share=True), units.Unit(share=False)
    assert units.change_with_interval(0.3, (-0.1, 0.6), share) == "−0.3 points [−0.6, +0.1]"
    assert units.change_with_interval(30.0, (-10.0, 60.0), number) == "−0.3 [−0.6, +0.1]"
    assert units.change(0.04, share) == "0.0"  # never a minus zero


def test_the_drop_of_an_error_is_a_change_above_zero() -> None:
    share, number = (units.Unit(share=share, lower_is_better=True) for share in (True, False))
    assert units.change_with_interval(0.3, (-0.1, 0.6), share) == "+0.3 points [−0.1, +0.6]"
    assert units.change_with_interval(30.0, (-10.0, 60.0), number) == "+0.3 [−0.1, +0.6]"


def test_scores_factors_and_digests() -> None:
    assert units.score(0.9796, units.Unit(share=True)) == "98.0 %"
    assert units.score(12.3456, units.Unit(share=False)) == "12.35"
    assert units.factor(3.44) == "3.4×"
    assert units.milliseconds(1.8361) == "1.84 ms"
    assert units.short("ab" * 32) == "abababababab"
