"""The figures of a row by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compress.bench.figures import accuracy, emulated_parity, generation, latency, speedup
from compress.bench.record import Generation
from compress.errors import CompressError
from compress.intervals import tango_interval
from compress.metrics import get_metric

MS = 1_000_000


def restarts(*medians: int, runs: int = 5) -> list[list[int]]:
    """Each restart takes ``median`` ms, plus and minus one ms about it."""
    return [[(median + offset) * MS for offset in np.resize([-1, 0, 1, 0, 0], runs)] for median in medians]


def test_p50_is_the_median_of_the_restarts_medians() -> None:
    found = latency(restarts(10, 30, 20, 12, 11, 13))
    assert found.restart_p50 == (10, 30, 20, 12, 11, 13)
    assert (found.p50, found.interval, found.coverage) == (12.5, (10, 30), 0.96875)
    assert (found.min, found.max, found.restarts, found.runs) == (9, 31, 6, 30)
    assert found.mean == pytest.approx(16.0)


def test_one_slow_restart_does_not_move_the_interval_of_twelve() -> None:
    """Of twelve restarts the third and the tenth bound the median."""
    found = latency(restarts(*range(10, 21), 500))
    assert (found.p50, found.interval) == (15.5, (12, 19))


@pytest.mark.parametrize(("runs", "given"), [
    (31, ""), (32, "p90"), (64, "p90"), (65, "p90 p95"), (330, "p90 p95"), (331, "p90 p95 p99")])
def test_a_percentile_needs_as_many_runs_as_early_stopping(runs: int, given: str) -> None:
    """Of two restarts: 64 for the 90th percentile, 130 for the 95th, 662 for the 99th."""
    found = latency(restarts(10, 12, runs=runs))
    assert [name for name in ("p90", "p95", "p99") if getattr(found, name) is not None] == given.split()
    assert [name for name, value in found.estimates.items() if value is not None] == given.split()


@pytest.mark.parametrize(("runs", "given"), [(9, ""), (10, "p90"), (99, "p90 p95"), (100, "p90 p95 p99")])
def test_each_restart_needs_runs_beyond_its_percentile(runs: int, given: str) -> None:
    found = latency(restarts(*[10] * 200, runs=runs))
    assert [name for name in ("p90", "p95", "p99") if getattr(found, name) is not None] == given.split()


def test_the_early_stopping_estimates_are_of_all_runs() -> None:
    """200 runs of 1 to 200 ms in two restarts: the tenth largest for the 90th percentile, the third for the 95th."""
    found = latency([[i * MS for i in range(1, 101)], [i * MS for i in range(101, 201)]])
    assert found.estimates == {"p90": 191.0, "p95": 198.0, "p99": None}


def test_percentiles_are_of_each_restart() -> None:
    """Runs of 1..100 ms and of 101..200 ms: p99 is 99.01 and 199.01, whose median is 149.01; pooled it would be 198."""
    found = latency([[i * MS for i in range(1, 101)], [i * MS for i in range(101, 201)]] * 4)
    assert found.p99 == pytest.approx(149.01)
    assert found.p90 == pytest.approx((90.1 + 190.1) / 2)


def test_speedup_is_paired_by_round() -> None:
    """The machine slows down fivefold over the rounds; the ratio of each round does not see it."""
    slow, fast = latency(restarts(20, 40, 60, 80, 100, 120)), latency(restarts(10, 20, 30, 40, 50, 60))
    found = speedup("original", slow, fast)
    assert (found.against, found.ratio, found.interval) == ("original", 2.0, (2.0, 2.0))


def test_drop_in_points() -> None:
    reference, scores = np.ones(200), np.ones(200)
    scores[:4] = 0
    found = accuracy(get_metric("accuracy"), scores, reference, 0.01, None)
    assert found.value == 0.98
    assert found.drop is not None
    low, high = tango_interval(4, 0, 200)
    assert (found.drop.points, found.drop.interval) == (pytest.approx(2.0), pytest.approx((100 * low, 100 * high)))
    assert (found.drop.n, found.drop.method, found.drop.verdict) == (200, "Tango", "undecidable at n=200")
    for budget, verdict in ((0.06, "within budget"), (0.0, "over budget")):
        assert accuracy(get_metric("accuracy"), scores, reference, budget, None).drop.verdict == verdict  # type: ignore[union-attr]
    assert accuracy(get_metric("accuracy"), scores, None, 0.01, None).drop is None


def test_a_comparison_says_whether_it_is_one() -> None:
    """Twice as fast in every round; in all but one; and in too few."""
    slow = latency(restarts(*[20] * 8))
    assert speedup("a", slow, latency(restarts(*[10] * 8))).different is True
    assert speedup("a", slow, latency(restarts(*[10] * 7, 21))).different is False
    assert speedup("a", slow, latency(restarts(*[10] * 5))).different is None


def test_under_emulation_integers_are_compared_and_infinities_must_agree() -> None:
    """Token ids of three samples, of which one differs; scores whose masked column is minus infinity on both sides."""
    tokens, masked = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[0.5, -np.inf], [0.25, -np.inf], [2.0, -np.inf]])
    found = emulated_parity([{"ids": tokens, "scores": masked}], [{"ids": tokens + np.array([[0, 0], [0, 3], [0, 0]]),
                                                                  "scores": masked + 0.125}])
    assert (found.largest_difference, found.largest_output, found.samples) == (3.0, 6.0, 3)
    assert found.same_answers == pytest.approx(2 / 3)
    with pytest.raises(CompressError, match="output 'scores' is infinite under emulation or here, and not in both"):
        emulated_parity([{"scores": masked}], [{"scores": np.abs(masked)}])
    with pytest.raises(CompressError, match=r"output 'scores' has shape \(1,\) under emulation and \(2,\) here"):
        emulated_parity([{"scores": masked}], [{"scores": masked[:, :1]}])


def test_the_drop_of_an_error_rate_is_what_it_rose() -> None:
    """Ten references of 10 words with one edit each, then with two in the first of them: 10 % and 11 %."""
    reference = np.tile([1.0, 10.0], (10, 1))
    scores = reference + np.eye(10)[:, :1] * [[1.0, 0.0]]
    found = accuracy(get_metric("wer"), scores, reference, 0.05, None)
    assert (found.metric, found.value, found.share, found.lower_is_better) == ("wer", pytest.approx(0.11), True, True)
    assert found.drop is not None
    assert (found.drop.points, found.drop.verdict) == (pytest.approx(1.0), "within budget")
    assert found.drop.interval[0] == pytest.approx(0.0)
    fewer = accuracy(get_metric("wer"), reference, scores, 0.0, None).drop
    assert fewer is not None
    assert fewer.points == pytest.approx(-1.0)


def test_under_emulation_batches_may_differ_in_shape() -> None:
    here = [{"ids": np.zeros((2, 3), int)}, {"ids": np.zeros((1, 5), int)}]
    found = emulated_parity(here, [{"ids": np.zeros((2, 3), int)}, {"ids": np.ones((1, 5), int)}])
    assert (found.samples, found.same_answers) == (3, pytest.approx(2 / 3))
    with pytest.raises(CompressError, match="output 'ids' has 2 samples under emulation and 3 here"):
        emulated_parity(here, here[:1])


def test_under_emulation_a_text_of_another_length_is_another_answer() -> None:
    """Batches are joined where their texts are of one length, which may be elsewhere on the other side."""
    here = [{"ids": np.array([[1, 2], [3, 4], [5, 6]])}]
    there = [{"ids": np.array([[1, 2]])}, {"ids": np.array([[3, 4, 7], [5, 6, 0]])}]
    assert emulated_parity(here, there).same_answers == pytest.approx(1 / 3)


def test_how_answers_come_is_the_median_over_processes() -> None:
    """Five tokens: the first after 2 ms, the other four in 8 ms; in a second process after 4 ms, and in 4 ms."""
    told = {"steps": 5, "first_ns": [2_000_000] * 5, "all_ns": [10_000_000] * 5}
    other = {"steps": 5, "first_ns": [4_000_000] * 5, "all_ns": [8_000_000] * 5}
    assert generation([told, None, other]) == Generation(tokens=5, first_token_ms=3.0, tokens_per_s=4 / 6e-3)
    assert generation([told]) == Generation(tokens=5, first_token_ms=2.0, tokens_per_s=500.0)
    alone = generation([{"steps": 1, "first_ns": [2_000_000], "all_ns": [2_000_000]}])
    assert alone == Generation(tokens=1, first_token_ms=2.0, tokens_per_s=None)
    assert generation([None, None]) is None
    assert generation([told]).describe() == "the first token after 2 ms, then 500 tokens/s (5)"      # type: ignore[union-attr]
    assert alone.describe() == "the first token after 2 ms"     # type: ignore[union-attr]
