from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes import Batcher
from runtimes.errors import FeedError, RuntimesError
from runtimes.session import Session
from runtimes.spec import Dim, TensorSpec
from tests.contracts.models import BATCH, BY_NAME, f32
from tests.runtimes.bundles import FakeRunner, write_bundle

LENGTH = Dim("length", 1, 3, 9)
TEXT = TensorSpec(name="tokens", dtype="int64", shape=(BATCH, LENGTH), modality="text")
BIAS = TensorSpec(name="bias", dtype="float32", shape=(1,), batch_axis=None)


class Sums:
    """A fake session: sums of the tokens of each sample, plus the bias; a 13 fails the run."""

    def __init__(self) -> None:
        self.inputs: tuple[TensorSpec, ...] = (TEXT, BIAS)
        self.outputs: tuple[TensorSpec, ...] = (f32("sum", BATCH),)
        self.shapes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.begun.release()
        assert self.gate.wait(20)
        self.shapes.append(feed["tokens"].shape)
        if (feed["tokens"] == 13).any():
            raise RuntimesError("token 13 is unlucky")
        return {"sum": (feed["tokens"].sum(axis=1) + feed["bias"]).astype(np.float32)}


def ask(batcher: Batcher, *tokens: int, bias: float = 0.0) -> Future[dict[str, np.ndarray]]:
    return batcher.submit({"tokens": np.array([tokens]), "bias": np.array([bias], np.float32)})


@pytest.fixture
def sums() -> Sums:
    return Sums()


def held(sums: Sums, batcher: Batcher) -> Future[dict[str, np.ndarray]]:
    """A run that is under way and holds the others back, so that they gather."""
    first = ask(batcher, 0)
    assert sums.begun.acquire(timeout=20)
    return first


def test_feeds_that_wait_run_together_and_are_split_again(sums: Sums) -> None:
    with Batcher(sums, max_batch=8, max_delay_ms=0) as batcher:  # type: ignore[arg-type]
        assert batcher.max_batch == 4       # the engine's own limit
        first = held(sums, batcher)
        futures = [ask(batcher, number, 1) for number in range(6)]
        sums.gate.set()
        assert first.result(20)["sum"] == [0]
        assert [future.result(20)["sum"].tolist() for future in futures] == [[number + 1] for number in range(6)]
    assert sums.shapes == [(1, 1), (4, 2), (2, 2)]


def test_what_cannot_run_together_runs_apart(sums: Sums) -> None:
    with Batcher(sums, max_delay_ms=0) as batcher:  # type: ignore[arg-type]
        first = held(sums, batcher)
        futures = [ask(batcher, 1, 2), ask(batcher, 1, 2, 3), ask(batcher, 5, 5), ask(batcher, 1, 2, bias=0.5)]
        sums.gate.set()
        assert [f.result(20)["sum"].tolist() for f in [first, *futures]] == [[0], [3], [6], [10], [3.5]]
    assert sums.shapes == [(1, 1), (2, 2), (1, 3), (1, 2)]      # another length, another bias


def test_an_error_reaches_its_caller_only(sums: Sums) -> None:
    with Batcher(sums, max_delay_ms=0) as batcher:  # type: ignore[arg-type]
        held(sums, batcher)
        good, bad, other = ask(batcher, 1), ask(batcher, 13), ask(batcher, 2)
        sums.gate.set()
        with pytest.raises(RuntimesError, match="token 13 is unlucky"):
            bad.result(20)
        assert (good.result(20)["sum"].tolist(), other.result(20)["sum"].tolist()) == ([1], [2])
        with pytest.raises(FeedError, match="input 'tokens' has dtype float64"):
            batcher.submit({"tokens": np.ones((1, 2)), "bias": np.zeros(1, np.float32)})
        assert ask(batcher, 7).result(20)["sum"].tolist() == [7]


def test_a_feed_of_several_samples_waits_for_the_next_run(sums: Sums) -> None:
    with Batcher(sums, max_delay_ms=0) as batcher:  # type: ignore[arg-type]
        held(sums, batcher)
        three = {"tokens": np.array([[1], [2], [3]]), "bias": np.zeros(1, np.float32)}
        futures = [batcher.submit(three), batcher.submit(three), ask(batcher, 9)]
        sums.gate.set()
        assert [f.result(20)["sum"].tolist() for f in futures] == [[1, 2, 3], [1, 2, 3], [9]]
    assert sums.shapes == [(1, 1), (3, 1), (4, 1)]


def test_a_lone_feed_waits_for_the_delay_at_most(sums: Sums) -> None:
    sums.gate.set()
    with Batcher(sums, max_delay_ms=5) as batcher:  # type: ignore[arg-type]
        assert batcher.run({"tokens": np.array([[4]]), "bias": np.ones(1, np.float32)})["sum"].tolist() == [5]


def test_cancelled_feeds_do_not_run(sums: Sums) -> None:
    with Batcher(sums, max_delay_ms=0) as batcher:  # type: ignore[arg-type]
        held(sums, batcher)
        gone, kept = ask(batcher, 1), ask(batcher, 2)
        assert gone.cancel()
        sums.gate.set()
        assert kept.result(20)["sum"].tolist() == [2]
    assert sums.shapes == [(1, 1), (1, 1)]


def test_closing_runs_what_waits_and_refuses_the_rest(sums: Sums) -> None:
    batcher = Batcher(sums, max_delay_ms=0)  # type: ignore[arg-type]
    held(sums, batcher)
    waiting = [ask(batcher, 1), ask(batcher, 2, 2)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while not batcher._closed:
        pass
    with pytest.raises(RuntimesError, match="this Batcher is closed"):
        ask(batcher, 3)
    sums.gate.set()
    closer.join(20)
    assert [future.result(0)["sum"].tolist() for future in waiting] == [[1], [4]]
    batcher.close()


@pytest.mark.parametrize(("feed", "message"), [
    ({"tokens": np.ones((4, 1), np.int64)}, r"up to 3"),
    ({"tokens": np.ones((5, 1), np.int64)}, r"batch is 5, outside 1\.\.4"),
])
def test_feeds_that_are_too_large(feed: dict[str, np.ndarray], message: str, sums: Sums) -> None:
    with Batcher(sums, max_batch=3) as batcher, pytest.raises(FeedError, match=message):  # type: ignore[arg-type]
        batcher.submit({**feed, "bias": np.zeros(1, np.float32)})


@pytest.mark.parametrize(("inputs", "outputs", "message"), [
    ((f32("x", 1, 2),), (f32("y", 1),), r"input 'x' is float32\[1, 2\], its batch is fixed: nothing"),
    ((f32("x", Dim("batch", 1, 1, 1), 2),), (f32("y", 1),), "its batch is fixed"),
    ((BIAS,), (f32("y", 1),), "the inputs have no batch axis"),
    ((TEXT,), (BIAS,), "output 'bias' has no batch axis, so callers cannot be told apart"),
])
def test_engines_that_cannot_be_batched(inputs: Any, outputs: Any, message: str, sums: Sums) -> None:
    sums.inputs, sums.outputs = inputs, outputs
    with pytest.raises(RuntimesError, match=message):
        Batcher(sums)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"max_delay_ms": -1.0}])
def test_bad_settings(settings: dict[str, Any], sums: Sums) -> None:
    with pytest.raises(RuntimesError, match="max_batch is at least 1 and max_delay_ms 0, got"):
        Batcher(sums, **settings)  # type: ignore[arg-type]


def test_an_engine_that_returns_another_batch_is_run_one_by_one(made_bundle: Path) -> None:
    """Its record says that the output has a batch axis, and it has not."""
    engine = replace(runtimes.read_engine(made_bundle / "engines/main/onnxruntime-cpu"))
    gate, begun = threading.Event(), threading.Semaphore(0)

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        begun.release()
        assert gate.wait(20)
        return {"y": feed["x"].sum(axis=0, keepdims=True)}

    with Session(engine, FakeRunner(run), "here") as session, Batcher(session, max_delay_ms=0) as batcher:
        feeds = [{"x": np.full((1, 2), number, np.float32)} for number in range(4)]
        futures = [batcher.submit(feeds[0])]
        assert begun.acquire(timeout=20)
        futures += [batcher.submit(feed) for feed in feeds[1:]]
        gate.set()
        assert [future.result(20)["y"].tolist() for future in futures] == [[[n, n]] for n in range(4)]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", ["matmul", "qdq_matmul"])
def test_many_threads_get_what_one_by_one_gives(backend: str, case: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"main": BY_NAME[case]}, [backend])
    (spec,) = BY_NAME[case].inputs
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(1, spec.shape[1])).astype(np.float32) for _ in range(60)]  # type: ignore[arg-type]
    wrong: list[int] = []
    with runtimes.load(bundle, graph="main", threads=1) as session, Batcher(session, max_delay_ms=1) as batcher:
        alone = [session.run({"x": sample})["y"] for sample in samples]

        def work(start: int) -> None:
            for index in range(start, 60, 6):
                y = batcher.run({"x": samples[index]})["y"]
                if y.shape != alone[index].shape or not np.allclose(y, alone[index], rtol=1e-5, atol=1e-6):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(start,)) for start in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


def test_a_chain_can_be_batched(tmp_path: Path) -> None:
    graphs = {"main": BY_NAME["matmul"], "text": BY_NAME["gather"]}
    bundle = write_bundle(tmp_path / "b", graphs, ["onnxruntime"])
    feeds = [{"x": np.full((1, 2), number, np.float32), "tokens": np.full((1, 3), number)} for number in range(4)]
    with runtimes.load(bundle, threads=1) as chain, Batcher(chain, max_delay_ms=0) as batcher:
        for number, future in enumerate([batcher.submit(feed) for feed in feeds]):
            outputs = future.result(20)
            np.testing.assert_allclose(outputs["y"], [[5 * number, 7 * number, 9 * number]], rtol=1e-6)
            np.testing.assert_array_equal(outputs["rows"], [[[number, 10 * number]] * 3])
