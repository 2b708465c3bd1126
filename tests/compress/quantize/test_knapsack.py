"""The solver against every combination."""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from compress.quantize.knapsack import choose

# Multiples of 1/8, so that sums are exact and a combination is within the budget or is not.
eighths = st.integers(0, 80).map(lambda n: n / 8)
parts = st.lists(st.integers(1, 3).flatmap(lambda n: st.tuples(
    st.lists(st.integers(-40, 80).map(lambda t: t / 8), min_size=n, max_size=n),
    st.lists(st.one_of(eighths, st.just(math.inf)), min_size=n, max_size=n))), min_size=1, max_size=5)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(parts, st.one_of(eighths, st.just(math.inf)))
def test_as_fast_as_the_best_of_all_combinations(
    given_parts: list[tuple[list[float], list[float]]], budget: float
) -> None:
    times, costs = [time for time, _ in given_parts], [cost for _, cost in given_parts]
    best = min((sum(times[i][c] for i, c in enumerate(combination))
                for combination in itertools.product(*(range(len(time)) for time in times))
                if math.isfinite(cost := sum(costs[i][c] for i, c in enumerate(combination))) and cost <= budget),
               default=None)  # fmt: skip
    found = choose(times, costs, budget)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert sum(costs[i][c] for i, c in enumerate(found)) <= budget
    assert sum(times[i][c] for i, c in enumerate(found)) == pytest.approx(best)


def test_by_hand() -> None:
    """Int8 saves 5, 4 and 3 and costs 5, 3 and 3: within 6 the last two are worth more than the first."""
    times, costs = [[1, 6], [1, 5], [1, 4]], [[5.0, 0.0], [3.0, 0.0], [3.0, 0.0]]
    assert choose(times, costs, 6) == (1, 0, 0)
    assert choose(times, costs, 5) == (0, 1, 1)
    assert choose(times, costs, 0) == (1, 1, 1)
    assert choose(times, costs, math.inf) == (0, 0, 0)


def test_limits_hold_parts_that_may_not_change_together() -> None:
    """Without limits all three take their second choice, which saves 5, 4 and 3."""
    times, costs = [[5, 0], [4, 0], [3, 0]], [[0.0, 1.0]] * 3
    assert choose(times, costs, 3) == (1, 1, 1)
    assert choose(times, costs, 3, limits=[([0, 1], 1)]) == (1, 0, 1)
    assert choose(times, costs, 3, limits=[([0, 1], 1), ([0, 2], 1)]) == (0, 1, 1)   # 7 are more than 5
    assert choose(times, costs, 3, limits=[([0, 1, 2], 0)]) == (0, 0, 0)
    assert choose(times, [[1.0, 0.0]] * 3, 0, limits=[([1], 0)]) is None               # it may not, and has to


def test_costs_and_times_may_be_tiny() -> None:
    assert choose([[1e-9, 2e-9], [1e-9, 2e-9]], [[1e-12, 0], [2e-12, 0]], 1.5e-12) == (0, 1)


def test_a_solver_that_gives_up_says_so() -> None:
    failed = mock.Mock(status=1, x=None, message="time limit reached")
    with (
        mock.patch("scipy.optimize.milp", return_value=failed),
        pytest.raises(CompressError, match="no choice of precisions was found: time limit reached"),
    ):
        choose([[1.0]], [[0.0]], 1.0)


def test_what_the_solver_prints_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    """Through C's buffered output, as HiGHS does; what is printed behind it is seen."""
    from scipy import optimize

    libc, solve = ctypes.CDLL(None), optimize.milp

    def loud(*given: Any, **more: Any) -> Any:
        libc.printf(b"noise\n")
        return solve(*given, **more)

    with mock.patch.object(optimize, "milp", loud):
        assert choose([[3.0, 1.0]], [[0.0, 1.0]], 2.0) == (1,)
    libc.printf(b"heard\n")
    libc.fflush(None)
    assert capfd.readouterr().out == "heard\n"
