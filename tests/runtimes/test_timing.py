"""How a query is run, and when a process counts as warm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from runtimes.errors import RuntimesError
from runtimes.spec import Dim, Feed, TensorSpec
from runtimes.timing import samples_of, split_query, time_queries, warm_up

MS = 1_000_000


def specs(largest: int, *, table: bool = False) -> tuple[TensorSpec, ...]:
    """``x`` of up to ``largest`` samples, and on request a ``table`` that all samples share."""
    x = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, largest), 2))
    shared = TensorSpec(name="table", dtype="float32", shape=(3,), batch_axis=None)
    return (x, shared) if table else (x,)


def feed(samples: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(2 * samples, dtype=np.float32).reshape(samples, 2)}


@pytest.mark.parametrize(("largest", "sizes"), [(64, [8]), (8, [8]), (3, [3, 3, 2]), (1, [1] * 8)])
def test_a_query_is_run_as_large_as_the_engine_takes(largest: int, sizes: list[int]) -> None:
    parts, samples = split_query(specs(largest), feed(8), 8, source="feed.npz")
    assert samples == 8
    assert [len(part["x"]) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), feed(8)["x"])


def test_an_input_without_a_batch_goes_with_every_part() -> None:
    whole = {**feed(3), "table": np.ones(3, np.float32)}
    parts, _ = split_query(specs(2, table=True), whole, 3, source="feed.npz")
    assert [len(part["x"]) for part in parts] == [2, 1]
    assert all(part["table"].shape == (3,) for part in parts)


def test_an_engine_without_a_batch_runs_its_sample_in_turn() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(2,), batch_axis=None)
    parts, samples = split_query((spec,), {"x": np.ones(2, np.float32)}, 8, source="feed.npz")
    assert (len(parts), samples) == (8, 8)


def test_without_a_count_the_feed_is_one_run() -> None:
    parts, samples = split_query(specs(8), feed(4), None, source="feed.npz")
    assert ([len(part["x"]) for part in parts], samples) == ([4], 4)


@pytest.mark.parametrize("samples", [0, 4])
def test_a_query_of_another_size_is_refused(samples: int) -> None:
    with pytest.raises(RuntimesError, match=rf"a query of {samples} samples, and feed.npz holds \{{'x': 3\}}"):
        split_query(specs(8), feed(3), samples, source="feed.npz")


def test_samples_of() -> None:
    assert samples_of({}) is None
    assert samples_of({"samples_per_query": 8}) == 8
    with pytest.raises(RuntimesError, match="'samples_per_query' must be an integer, got True"):
        samples_of({"samples_per_query": True})


class Machine:
    """A clock, and a query whose duration depends on it: ``after_s`` -> milliseconds from then on."""

    def __init__(self, times_ms: Mapping[float, float]) -> None:
        self.now_ns, self.times_ms = 0, times_ms

    def clock(self) -> int:
        return self.now_ns

    def query(self) -> int:
        reached = max(after for after in self.times_ms if after * 1e9 <= self.now_ns)
        took = int(self.times_ms[reached] * MS)
        self.now_ns += took
        return took


def test_a_steady_process_is_warm_after_the_time_given() -> None:
    took_s, steady = warm_up((machine := Machine({0: 1.0})).query, 0.3, machine.clock)
    assert (took_s, steady) == (pytest.approx(0.3, abs=0.01), True)


def test_a_process_that_settles_late_is_waited_for() -> None:
    """1.5 ms, falling by 5 % in each tenth of a second, until it stays at 0.9 from 1.0 s on."""
    falling = {i / 10: 1.5 * 0.95**i for i in range(10)}
    took_s, steady = warm_up((machine := Machine({**falling, 1.0: 0.9})).query, 0.3, machine.clock)
    assert steady
    assert 1.2 <= took_s <= 1.4  # three spells of a tenth of a second from 1.0 s on


def test_a_process_that_never_settles_is_measured_all_the_same() -> None:
    restless = {i / 10: 1.0 + i * i % 7 / 7 for i in range(100)}  # never two tenths of a second alike
    took_s, steady = warm_up((machine := Machine(restless)).query, 0.3, machine.clock)
    assert (took_s, steady) == (pytest.approx(3.0, abs=0.2), False)


def test_a_query_longer_than_a_spell_is_a_spell() -> None:
    took_s, steady = warm_up((machine := Machine({0: 400.0})).query, 0.3, machine.clock)
    assert (took_s, steady) == (pytest.approx(1.6), True)  # the first run and three spells


def test_no_warm_up_is_one_run() -> None:
    took_s, steady = warm_up((machine := Machine({0: 7.0})).query, 0.0, machine.clock)
    assert (took_s, steady) == (0.007, True)


def test_all_parts_are_inside_the_clock_of_a_query() -> None:
    class Runner:
        calls = 0

        def run(self, feed: Feed) -> dict[str, np.ndarray]:
            self.calls += 1
            return {}

    runner = Runner()
    settings = {"warmup_s": 0.0, "duration_s": 0.0, "min_runs": 5}
    timed = time_queries(runner.run, [{}, {}, {}], 24, settings)  # type: ignore[arg-type]
    assert (len(timed.latencies_ns), timed.samples_per_query, timed.steady) == (5, 24, True)
    assert runner.calls == 3 * (1 + 5)
