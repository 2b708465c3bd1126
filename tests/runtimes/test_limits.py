from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import runtimes
from runtimes import ResourceLimits
from runtimes.bundle import Bundle
from runtimes.errors import LimitError, RuntimesError
from runtimes.limits import resident_bytes
from runtimes.spec import Dim
from tests.contracts.models import BY_NAME, FLOAT, Case, f32, model, value
from tests.runtimes.bundles import FakeRunner, register_fake, write_bundle

ONE = {"x": np.array([[1, 1]], np.float32)}
WIDE, LAYERS = 256, 100


def build_slow() -> Any:
    """A hundred small layers: ONNX Runtime is stopped between two of them."""
    weights = np.random.default_rng(0).normal(size=(WIDE, WIDE)).astype(np.float32) / 16
    nodes, last = [], "x"
    for index in range(LAYERS):
        nodes += [helper.make_node("MatMul", [last, "w"], [f"h{index}"]),
                  helper.make_node("Tanh", [f"h{index}"], ["y" if index == LAYERS - 1 else f"t{index}"])]
        last = f"t{index}"
    return model(nodes, [value("x", FLOAT, "batch", WIDE)], [value("y", FLOAT, "batch", WIDE)], w=weights)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    batch = Dim("batch", 1, 1, 4096)
    feed = {"x": np.zeros((1, WIDE), np.float32)}
    case = Case(name="slow", build=build_slow, inputs=(f32("x", batch, WIDE),), outputs=(f32("y", batch, WIDE),),
                feed=feed, expected={"y": feed["x"]})
    return write_bundle(tmp_path_factory.mktemp("slow") / "b", {"main": case}, ["openvino", "onnxruntime"])


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_run_that_takes_too_long_is_given_up_and_the_session_goes_on(backend: str, slow: Bundle) -> None:
    """With OpenVINO's cancel(), the small feed after it gets an answer of the large one's shape."""
    large, small = ({"x": np.ones((size, WIDE), np.float32)} for size in (4096, 1))
    with runtimes.load(slow, backend, threads=1, warmup=1) as session:
        start = time.perf_counter()
        session.run(large)
        whole_s = time.perf_counter() - start
        expected = session.run(small)["y"]
    limits = ResourceLimits(timeout_s=whole_s / 3)
    with runtimes.load(slow, backend, threads=1, limits=limits, self_test=True) as session:
        for _ in range(2):
            with pytest.raises(LimitError, match=rf"engine .*{backend}: not done after"):
                session.run(large)
            while True:
                try:
                    answer = session.run(small)["y"]
                    break
                except LimitError as error:     # OpenVINO is still busy with the large one, or a loaded machine late
                    assert backend == "openvino" or "still busy with earlier runs" not in str(error)  # noqa: PT017
            np.testing.assert_array_equal(answer, expected)
        with pytest.raises(LimitError, match="not done after"):
            session.submit(large).result(60)


def test_a_backend_that_cannot_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(lambda feed: {})
    register_fake(monkeypatch, lambda _: runner)
    bundle = write_bundle(tmp_path / "b", {"main": BY_NAME["matmul"]}, ["fake"])
    with pytest.raises(RuntimesError, match="backend 'fake' cannot end a run early: leave timeout_s out of the limits"):
        runtimes.load(bundle, limits=ResourceLimits(timeout_s=1))
    assert runner.closed


def test_engine_larger_than_the_memory_is_never_opened(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.session.open_engine", lambda *_, **__: pytest.fail("it was opened"))
    message = r"onnxruntime-cpu: its files are \d+ bytes, more than max_memory_bytes = 100: take a smaller engine"
    with pytest.raises(LimitError, match=message):
        runtimes.load(made_bundle, "onnxruntime", limits=ResourceLimits(max_memory_bytes=100))


def test_an_engine_that_takes_more_memory_than_its_files_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[np.ndarray] = []

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken.append(np.ones(64 << 20, np.uint8))       # at the first run, as a backend may
        return {"y": np.zeros((1, 3), np.float32)}

    runner = FakeRunner(run)
    register_fake(monkeypatch, lambda _: runner)
    bundle = write_bundle(tmp_path / "b", {"main": BY_NAME["matmul"]}, ["fake"])
    limits = ResourceLimits(max_memory_bytes=32 << 20)
    with pytest.raises(LimitError, match=r"graph 'main' of .*: opening it took \d+ bytes.*was closed"):
        runtimes.load(bundle, limits=limits, warmup=1)
    assert runner.closed
    runner.closed = False
    runtimes.load(bundle, limits=limits).close()        # without a run nothing is taken


def test_resident_memory_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident_bytes()
    held = np.ones(50 << 20, np.uint8)
    assert 40 << 20 < resident_bytes() - before < 200 << 20
    assert held[-1] == 1
    monkeypatch.setattr("runtimes.limits.STATM", Path("/nowhere"))
    with pytest.raises(RuntimesError, match="max_memory_bytes needs /proc"):
        resident_bytes()


def test_threads(made_bundle: Path) -> None:
    with pytest.raises(LimitError, match="threads is 3, and max_threads allows 2: ask for fewer"):
        runtimes.load(made_bundle, threads=3, limits=ResourceLimits(max_threads=2))
    limits = ResourceLimits(max_threads=2)
    assert (limits.threads(None), limits.threads(1), ResourceLimits().threads(5)) == (2, 1, 5)
    assert ResourceLimits().threads(None) is None


def test_feeds_that_are_too_large(made_bundle: Path) -> None:
    limits = ResourceLimits(max_batch=2, max_feed_bytes=16)
    with runtimes.load(made_bundle, "onnxruntime", threads=1, limits=limits, self_test=True, warmup=1) as session:
        np.testing.assert_allclose(session.run(ONE)["y"], [[5, 7, 9]])
        with pytest.raises(LimitError, match="input 'x' has a batch of 3, and max_batch allows 2: split it"):
            session.run({"x": np.ones((3, 2), np.float32)})
    limits = ResourceLimits(max_feed_bytes=16)
    message = r"the feed is 24 bytes \(input 'x' alone 24\), and max_feed_bytes allows 16: split it"
    with runtimes.load(made_bundle, "onnxruntime", threads=1, limits=limits) as session:     # noqa: SIM117
        with pytest.raises(LimitError, match=message):
            session.run({"x": np.ones((3, 2), np.float32)})


@pytest.mark.parametrize("limits", [
    {"max_memory_bytes": 0}, {"max_threads": -1}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"max_batch": 0}])
def test_a_limit_is_above_0(limits: dict[str, Any]) -> None:
    with pytest.raises(RuntimesError, match=f"{next(iter(limits))} must be above 0"):
        ResourceLimits(**limits)
