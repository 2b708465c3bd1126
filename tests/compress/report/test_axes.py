import math

from hypothesis import given
from hypothesis import strategies as st

from compress.report.axes import axis


def test_a_linear_axis_has_round_ticks_at_their_pixels() -> None:
    found = axis([0.0, 10.0], label="x", start=0, end=110, padding=0.1)  # 0 stays 0, 10 gets a tenth of the range more
    assert found.ticks == ((0.0, "0"), (25.0, "2.5"), (50.0, "5"), (75.0, "7.5"), (100.0, "10"))


def test_a_logarithmic_axis_spaces_factors_evenly() -> None:
    found = axis([1.0, 100.0], label="x", start=0, end=100, log=True, padding=0.0)
    assert [text for _, text in found.ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert found.at(10.0) == 50.0
    assert found.at(2.0) == round(100 * math.log10(2) / 2, 1)


def test_values_that_span_little_stay_linear() -> None:
    assert not axis([4.0, 5.0], label="x", start=0, end=100, log=True).is_log


def test_ticks_between_whole_numbers_can_be_left_out() -> None:
    found = axis([1.0, 2.0], label="epoch", start=0, end=100, smallest_step=1)
    assert [text for _, text in found.ticks] == ["1", "2"]


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=9), st.booleans())
def test_every_value_and_tick_lies_on_the_axis(values: list[float], log: bool) -> None:
    found = axis(values, label="x", start=20, end=320, log=log)
    assert all(20 <= found.at(value) <= 320 for value in values)
    assert all(20 <= pixel <= 320 for pixel, _ in found.ticks)
    assert len(found.ticks) <= 16
