"""What happens when the device an engine is for is not there, or goes away."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runtimes
from runtimes.backends import open_engine
from runtimes.bundle import Bundle
from runtimes.errors import DeviceGone, RuntimesError
from tests.contracts.models import BY_NAME
from tests.runtimes.bundles import FakeRunner, register_fake, write_bundle

FEED = {"x": np.array([[1, 1]], np.float32)}
Opener = Callable[[runtimes.Engine], FakeRunner]


class Device:
    """A device with one engine, which answers zeros; ``gone`` says whether it still does."""

    def __init__(self) -> None:
        self.here, self.gone = True, False
        self.runners: list[FakeRunner] = []

    def open(self, engine: runtimes.Engine) -> FakeRunner:
        if not self.here:
            raise DeviceGone("the fake GPU is not there")
        self.runners.append(FakeRunner(self.run))
        return self.runners[-1]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.gone:
            raise DeviceGone("the fake GPU has fallen off the bus")
        return {"y": np.zeros((len(feed["x"]), 3), np.float32)}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    register_fake(monkeypatch, made.open)
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "b", {"main": BY_NAME["matmul"]}, ["onnxruntime", "fake"])


def test_without_a_device_it_fails_unless_asked_otherwise(device: Device, bundle: Bundle) -> None:
    device.here = False
    with pytest.raises(DeviceGone, match="the fake GPU is not there"):
        runtimes.load(bundle, "fake")


def test_the_cpu_instead_says_so(device: Device, bundle: Bundle) -> None:
    device.here = False
    told: list[str] = []
    with pytest.warns(RuntimeWarning, match="running on 'onnxruntime-cpu' instead: the fake GPU is not there"):
        session = runtimes.load(
            bundle, target="fake-gpu", graph="main", fallback="cpu", on_fallback=told.append, threads=1, self_test=True)
    with session:
        assert told == [session.fallback] == ["the fake GPU is not there"]
        assert (session.target, session.backend) == ("onnxruntime-cpu", "onnxruntime")
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]])


def test_a_device_that_is_there_is_used(device: Device, bundle: Bundle) -> None:
    with runtimes.load(bundle, "fake", graph="main", fallback="cpu") as session:
        assert session.fallback is None
        np.testing.assert_array_equal(session.run(FEED)["y"], [[0, 0, 0]])


def test_a_device_that_goes_away_during_a_run(device: Device, bundle: Bundle) -> None:
    told: list[str] = []
    with runtimes.load(bundle, "fake", graph="main", fallback="cpu", on_fallback=told.append, threads=1) as session:
        session.run(FEED)
        device.gone = True
        with pytest.warns(RuntimeWarning, match="running on 'onnxruntime-cpu' instead: .* fallen off the bus"):
            np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]])
        assert (session.target, session.fallback) == ("onnxruntime-cpu", "the fake GPU has fallen off the bus")
        assert session.digest == bundle.graph.engines["onnxruntime-cpu"].digest
        device.gone = False
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]])     # there is no way back
        assert len(told) == 1
    assert device.runners[0].closed


def test_a_device_that_goes_away_without_a_policy(device: Device, bundle: Bundle) -> None:
    with runtimes.load(bundle, "fake", graph="main") as session:
        device.gone = True
        with pytest.raises(DeviceGone, match="fallen off the bus"):
            session.run(FEED)
        assert session.fallback is None


def test_many_threads_switch_once(device: Device, bundle: Bundle) -> None:
    told: list[str] = []
    answers: list[np.ndarray] = []
    barrier = threading.Barrier(6, timeout=20)

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        barrier.wait()      # all of them are in it when it goes
        raise DeviceGone("gone")

    with runtimes.load(bundle, "fake", graph="main", fallback="cpu", on_fallback=told.append, threads=1) as session:
        device.runners[0].run = run
        workers = [threading.Thread(target=lambda: answers.append(session.run(FEED)["y"])) for _ in range(6)]
        with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    assert (len(caught), len(told)) == (1, 1)
    np.testing.assert_allclose(answers, np.broadcast_to([5, 7, 9], (6, 1, 3)))


def test_a_lost_device_that_cannot_even_be_closed(device: Device, bundle: Bundle) -> None:
    def close() -> None:
        raise RuntimesError("nothing answers")

    session = runtimes.load(bundle, "fake", graph="main", fallback="cpu", threads=1)
    device.gone = True
    device.runners[0].close = close  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning):
        session.run(FEED)
    session.close()


def test_a_bundle_without_an_engine_for_the_cpu(device: Device, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", {"main": BY_NAME["matmul"]}, ["fake"])
    device.here = False
    message = r"is not there; and for fallback='cpu' bundle .* has no engine for the CPU .*fake-gpu.*: add a CPU target"
    with pytest.raises(DeviceGone, match=message):
        runtimes.load(bundle, fallback="cpu")
    device.here = True
    with runtimes.load(bundle, graph="main", fallback="cpu") as session:
        device.gone = True
        with pytest.raises(DeviceGone, match="fallen off the bus; and for fallback='cpu'"):
            session.run(FEED)


def test_a_backend_that_is_not_installed(bundle: Bundle, made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceGone, match="needs the backend 'openvino', which is not installed"):
        runtimes.load(made_bundle, target="openvino-cpu")
    with pytest.warns(RuntimeWarning, match="running on 'onnxruntime-cpu' instead"):
        session = runtimes.load(made_bundle, target="openvino-cpu", graph="main", fallback="cpu", threads=1)
    with session:
        assert "is not installed" in str(session.fallback)


def test_a_changed_file_is_no_reason_to_fall_back(device: Device, bundle: Bundle) -> None:
    (bundle.path / "engines/main/fake/model.fake").write_bytes(b"other")
    with pytest.raises(RuntimesError, match=r"model\.fake has SHA-256") as caught:
        runtimes.load(bundle, "fake", fallback="cpu")
    assert not isinstance(caught.value, DeviceGone)


@pytest.mark.parametrize("arguments", [{"fallback": "gpu"}, {"warmup": -1}])
def test_bad_arguments(arguments: dict[str, object], bundle: Bundle) -> None:
    with pytest.raises(RuntimesError, match=r"fallback is one of \('fail', 'cpu'\) and warmup at least 0, got"):
        runtimes.load(bundle, **arguments)  # type: ignore[call-overload]


def test_an_openvino_device_that_is_not_here_lists_what_is(made_bundle: Path) -> None:
    engine = replace(runtimes.read_engine(made_bundle / "engines/main/openvino-cpu"), device="NPU")
    with pytest.raises(DeviceGone, match=r"cannot open it on NPU: this machine has \['CPU'.*; install the driver"):
        open_engine(engine)


def test_an_openvino_device_that_goes_away(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is made of the CPU; written without one, which has never been seen to go."""
    engine = runtimes.read_engine(made_bundle / "engines/main/openvino-cpu")
    runner = open_engine(engine, threads=1)
    runner._engine = replace(engine, device="GPU")  # type: ignore[attr-defined]
    with pytest.raises(DeviceGone, match="its GPU is gone"):
        runner.run({"x": np.ones((1, 3), np.float32)})
    monkeypatch.setattr("runtimes.openvino._is_here", lambda _: True)
    with pytest.raises(RuntimesError, match="cannot run this feed") as caught:
        runner.run({"x": np.ones((1, 3), np.float32)})
    assert not isinstance(caught.value, DeviceGone)
    runner.close()


def test_one_graph_of_a_chain_on_the_cpu(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {"main": BY_NAME["matmul"], "text": BY_NAME["gather"]}
    bundle = write_bundle(tmp_path / "b", graphs, ["onnxruntime", "fake"])

    def opener(engine: runtimes.Engine) -> FakeRunner:
        if engine.inputs[0].name == "x":
            raise DeviceGone("too small a GPU")
        return FakeRunner(lambda feed: {"rows": np.zeros((1, 3, 2), np.float32)})

    register_fake(monkeypatch, opener)
    with pytest.warns(RuntimeWarning, match="running on 'onnxruntime-cpu' instead"):
        chain = runtimes.load(bundle, "fake", fallback="cpu", threads=1)
    with chain:
        assert chain.fallback == "graph 'main': too small a GPU"
        assert chain.target == "onnxruntime-cpu, fake-gpu"
        outputs = chain.run({**FEED, "tokens": np.array([[1, 2, 3]])})
        np.testing.assert_allclose(outputs["y"], [[5, 7, 9]])
        assert not outputs["rows"].any()
