"""The search for a mixture, where the true drop and latency of every mixture are known."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from compress.intervals import Estimate
from compress.quantize.mixing import Guess, Point, best, guesses, search

INT8, FLOAT = 0, 1


def guess_of(costs: list[float], gains: list[float], base_drop: float = 0.0) -> Guess:
    """Int8 of part i costs ``costs[i]`` and saves ``gains[i]`` of 100 ms that the whole takes in int8."""
    added = [[0.0, gain] for gain in gains]
    return Guess(
        costs=[[cost, 0.0] for cost in costs], times=[[0.0, gain / 100] for gain in gains], base_drop=base_drop,
        base_ms={"here": 100.0}, added_ms={"here": added},
    )  # fmt: skip


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=100, method="")


def true_to(guess: Guess, drop: Callable[[Point], float]) -> tuple[list[Point], Callable[[Point], Point]]:
    """A measurement that finds ``drop`` and the latency that was guessed; and the two ends, measured so."""
    def measure(point: Point) -> Point:
        return dataclasses.replace(point, drop=exactly(drop(point)), latency_ms=dict(point.predicted_ms))

    count = len(guess.costs)
    ends = {"all int8": INT8, "all float": FLOAT}
    return [measure(guess.point(name, (choice,) * count)) for name, choice in ends.items()], measure


tenths = st.integers(0, 64).map(lambda n: n / 64)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(tenths, st.integers(-8, 32)), min_size=1, max_size=6), tenths)
def test_where_costs_add_up_it_finds_the_fastest_that_keeps(parts: list[tuple[float, int]], budget: float) -> None:
    costs, gains = [cost for cost, _ in parts], [float(gain) for _, gain in parts]
    guess = guess_of(costs, gains)
    known, measure = true_to(guess, lambda point: point.predicted_drop)
    search(guess, budget, 8, measure, known)
    found = best(known, budget)
    assert found is not None
    fastest = min(
        100 + sum(gain for gain, choice in zip(gains, chosen, strict=True) if choice == FLOAT)
        for chosen in itertools.product((INT8, FLOAT), repeat=len(parts))
        if sum(cost for cost, choice in zip(costs, chosen, strict=True) if choice == INT8) <= budget
    )
    assert found.latency_ms == {"here": pytest.approx(fastest)}
    assert found.drop is not None
    assert found.drop.value <= budget


def test_a_guess_that_is_too_hopeful_is_tightened() -> None:
    """Each part costs three times what was guessed: of eight parts two may be int8 where the guess allows six."""
    guess = guess_of([1.0] * 8, [5.0] * 8)
    known, measure = true_to(guess, lambda point: 3 * point.predicted_drop)
    search(guess, 6.0, 8, measure, known)
    found = best(known, 6.0)
    assert found is not None
    assert found.chosen.count(INT8) == 2
    assert found.predicted_drop == 2.0
    assert found.drop == exactly(6.0)


def test_a_guess_that_is_too_careful_is_loosened() -> None:
    guess = guess_of([1.0] * 8, [5.0] * 8)
    known, measure = true_to(guess, lambda point: 0.5 * point.predicted_drop)
    search(guess, 2.0, 8, measure, known)
    found = best(known, 2.0)
    assert found is not None
    assert found.chosen.count(INT8) == 4


def test_the_fastest_of_all_is_tried_first_and_ends_it() -> None:
    """The second part is slower in int8, and the budget is wide."""
    guess = guess_of([1.0, 1.0, 1.0], [5.0, -3.0, 5.0])
    known, measure = true_to(guess, lambda point: point.predicted_drop)
    search(guess, 5.0, 8, measure, known)
    assert [point.chosen for point in known[2:]] == [(INT8, FLOAT, INT8)]
    assert best(known, 5.0) is known[2]
    assert known[2].latency_ms == {"here": 97.0}


def test_no_more_rounds_than_asked_for() -> None:
    guess = guess_of([1.0] * 12, [float(n) for n in range(1, 13)])
    known, measure = true_to(guess, lambda point: 10 * point.predicted_drop)
    search(guess, 5.0, 3, measure, known)
    assert len(known) == 2 + 3


def test_a_mixture_that_fails_is_taken_for_one_that_drops_too_much() -> None:
    guess = guess_of([1.0, 2.0], [5.0, 5.0])
    known, measure = true_to(guess, lambda point: point.predicted_drop)

    def failing(point: Point) -> Point:
        return measure(point) if point.chosen[1] == FLOAT else dataclasses.replace(point, failure="refused")

    known[0] = dataclasses.replace(known[0], drop=None, failure="refused")
    search(guess, 2.5, 8, failing, known)
    found = best(known, 2.5)
    assert found is not None
    assert found.chosen == (INT8, FLOAT)


def test_without_one_that_keeps_the_budget_the_nearest_is_best() -> None:
    guess = guess_of([1.0, 2.0], [5.0, 5.0], base_drop=4.0)
    known, _ = true_to(guess, lambda point: point.predicted_drop)
    assert [point.drop for point in known] == [exactly(7.0), exactly(4.0)]
    assert best(known, 1.0) is known[1]
    assert best([dataclasses.replace(known[0], drop=None)], 1.0) is None


def test_of_several_targets_each_counts_alike() -> None:
    """A gains 10 of 100 ms on one target and loses 1 of 2 ms on the other."""
    def point(name: str, **latency_ms: float) -> Point:
        return Point(name=name, chosen=(0,), predicted_drop=0.0, predicted_ms=latency_ms, drop=exactly(0.0),
                     latency_ms=latency_ms)  # fmt: skip

    a, b = point("a", server=90.0, board=3.0), point("b", server=100.0, board=2.0)
    assert best([a, b], 0.0) is b


def test_the_guessed_curve_goes_from_what_costs_nothing_to_the_fastest() -> None:
    guess = guess_of([4.0, 2.0, 1.0], [8.0, 5.0, 3.0])
    curve = guesses(guess)
    assert curve[0].chosen == (FLOAT,) * 3
    assert curve[-1].chosen == (INT8,) * 3
    drops, latencies = [p.predicted_drop for p in curve], [p.predicted_ms["here"] for p in curve]
    assert drops == sorted(drops)
    assert latencies == sorted(latencies, reverse=True)
    assert len({p.chosen for p in curve}) == len(curve)


def test_choices_that_all_cost_something_are_refused() -> None:
    guess = Guess(costs=[[2.0]], times=[[0.0]], base_drop=0.0, base_ms={}, added_ms={})
    known = [dataclasses.replace(guess.point("all int8", (0,)), drop=exactly(9.0))]
    with pytest.raises(CompressError, match=r"no choice of precisions costs at most 1: give every part one that costs"):
        search(guess, 1.0, 2, lambda point: point, known)


def test_a_point_as_json() -> None:
    guess = guess_of([1.0, 2.0], [5.0, 4.0])
    point = dataclasses.replace(guess.point("round 1", (INT8, FLOAT)), drop=exactly(0.5), latency_ms={"here": 98.0})
    assert point.to_json(["a", "b"], (FLOAT,), 0.5) == {
        "name": "round 1", "float": ["b"], "predicted": {"points": 100.0, "latency_ms": {"here": 104.0}},
        "drop": {"points": 50.0, "interval": [50.0, 50.0], "n": 100, "verdict": "within budget"},
        "latency_ms": {"here": 98.0}, "failure": None,
    }  # fmt: skip
    assert guess.point("guess", (INT8, INT8)).to_json(["a", "b"], (FLOAT,), math.inf)["drop"] is None
