from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.arrays import write_arrays
from runtimes.bundle import MANIFEST, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, file_digest
from tests.contracts.models import BY_NAME
from tests.runtimes.bundles import FakeRunner, register_fake, write_bundle

FEED = {"x": np.array([[1, 1]], np.float32)}


def relist(bundle: Path, name: str, **changes: Any) -> None:
    """Make the manifest list file ``name`` as it is now, and change keys of its golden record."""
    record = json.loads((bundle / MANIFEST).read_text())
    record["files"][name] = {"sha256": file_digest(bundle / name), "size": (bundle / name).stat().st_size}
    record["graphs"]["main"]["golden"].update(changes)
    (bundle / MANIFEST).write_text(json.dumps(record))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_load_and_run(backend: str, made_bundle: Path) -> None:
    with runtimes.load(made_bundle, backend, threads=1, self_test=True) as session:
        assert (session.backend, session.target, session.precision) == (backend, f"{backend}-cpu", "fp32")
        assert session.digest == read_bundle(made_bundle).graphs["main"].engines[f"{backend}-cpu"].digest
        assert [spec.name for spec in session.inputs] == ["x"]
        assert [spec.name for spec in session.outputs] == ["y"]
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]], atol=1e-6)


def test_openvino_is_taken_first_then_what_is_installed(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtimes.load(made_bundle, threads=1) as session:
        assert session.target == "openvino-cpu"
    monkeypatch.setattr("runtimes.choosing.is_installed", lambda name: name != "openvino")
    with runtimes.load(made_bundle, threads=1) as session:
        assert session.target == "onnxruntime-cpu"


def test_a_target_by_name(made_bundle: Path) -> None:
    with runtimes.load(read_bundle(made_bundle), target="onnxruntime-cpu", graph="main", threads=1) as session:
        assert session.backend == "onnxruntime"


def test_backend_not_installed(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.choosing.is_installed", lambda _: False)
    with pytest.raises(RuntimesError, match=r"needs the backend 'openvino'.*pip install \"compress-edge\[openvino\]\""):
        runtimes.load(made_bundle, "openvino")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"backend": "openvin"}, "unknown backend 'openvin', expected one of .*did you mean 'openvino'"),
    ({"backend": "zzz"}, "unknown backend 'zzz'.*choose another"),
    ({"backend": "tensorrt_rtx"}, "has no engine for backend 'tensorrt_rtx'; it has {'jetson'"),
    ({"target": "rpi5"}, "has no engine for target 'rpi5'; it has"),
    ({"target": "openvino-cpu", "backend": "onnxruntime"}, "for target 'openvino-cpu' and backend 'onnxruntime'"),
    ({"graph": "decoder"}, r"has the graphs \['main'\]: graph 'decoder' is not one of them"),
])
def test_what_the_bundle_does_not_hold(arguments: dict[str, Any], message: str, made_bundle: Path) -> None:
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(made_bundle, **arguments)


def test_an_engine_still_to_be_built(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.choosing.is_installed", lambda _: True)
    monkeypatch.setattr("runtimes.built.built_engine", lambda engine, expected: pytest.fail("is built here")
                        if set(expected) == {"engine.json", "model.onnx"} else None)
    with pytest.raises(pytest.fail.Exception, match="is built here"):
        runtimes.load(made_bundle, target="jetson")


def test_one_of_several_graphs(bundle: Path) -> None:
    record = json.loads((bundle / MANIFEST).read_text())
    record["graphs"]["second"] = record["graphs"]["main"]
    (bundle / MANIFEST).write_text(json.dumps(record))
    with runtimes.load(bundle, graph="second", threads=1) as session:
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]], atol=1e-6)


def test_file_changed_between_reading_and_opening(bundle: Path) -> None:
    read = read_bundle(bundle)
    (bundle / "engines/main/openvino-cpu/model.bin").write_bytes(bytes(24))
    with pytest.raises(RuntimesError, match=r"model\.bin has SHA-256"):
        runtimes.load(read, "openvino")


def test_self_test_fails_on_another_answer(bundle: Path) -> None:
    write_arrays(bundle / "golden/expected.npz", {"y": np.array([[5, 7, 9], [-2, -1, 0.5]], np.float32)})
    relist(bundle, "golden/expected.npz")
    with pytest.raises(RuntimesError, match=r"self-test of 'openvino-cpu'.*'y' differs from the expected one by 0\.5"):
        runtimes.load(bundle, "openvino", self_test=True)


@pytest.mark.parametrize(("name", "arrays", "changes", "message"), [
    ("expected", {"y": np.full((2, 3), np.nan, np.float32)}, {}, "output 'y' differs from the expected one by nan"),
    ("expected", {"y": np.zeros((1, 3), np.float32)}, {}, r"output 'y' has shape \(2, 3\), expected \(1, 3\)"),
    ("expected", {"z": np.zeros(1)}, {}, "the golden arrays lack 'y'"),
    ("feed", {"z": np.zeros(1)}, {}, "the golden arrays lack 'x'"),
    ("feed", {"x": np.zeros((1, 2))}, {}, "input 'x' has dtype float64"),
    ("feed", {"x": np.zeros((1, 2), np.float32)}, {"tolerance": {}}, "no tolerance for it"),
])
def test_self_test_with_bad_golden_arrays(
    name: str, arrays: dict[str, np.ndarray], changes: dict[str, Any], message: str, bundle: Path
) -> None:
    write_arrays(bundle / f"golden/{name}.npz", arrays)
    relist(bundle, f"golden/{name}.npz", **changes)
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(bundle, "onnxruntime", self_test=True)


def test_golden_arrays_are_read_without_pickle(bundle: Path) -> None:
    np.savez(bundle / "golden/feed.npz", x=np.array([{}], dtype=object))
    relist(bundle, "golden/feed.npz")
    with pytest.raises(RuntimesError, match=r"feed\.npz is not an \.npz file of plain arrays"):
        runtimes.load(bundle, "onnxruntime", self_test=True)


def test_record_and_manifest_must_agree(bundle: Path) -> None:
    """An engine.json that was swapped is caught by its digest, whatever it says."""
    path = bundle / "engines/main/openvino-cpu/engine.json"
    read = read_bundle(bundle)
    path.write_bytes(path.read_bytes().replace(b"fp32", b"int8"))
    assert bytes_digest(path.read_bytes()) != read.files["engines/main/openvino-cpu/engine.json"].sha256
    with pytest.raises(RuntimesError, match=r"engine\.json is not the file the manifest lists"):
        runtimes.load(read, "openvino")


# --- threads, submitting, closing -----------------------------------------------------------------------------------


class Gate:
    """A fake engine whose runs tell that they have begun, and wait until they are let through."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Semaphore(0), threading.Event()
        self.runner = FakeRunner(self.run)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert not self.runner.closed
        self.begun.release()
        assert self.open.wait(20)
        return {"y": feed["x"] * 2}


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Gate, runtimes.Session]:
    made = Gate()
    register_fake(monkeypatch, lambda _: made.runner)
    return made, runtimes.load(write_bundle(tmp_path / "b", {"main": BY_NAME["matmul"]}, ["fake"]), graph="main")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_every_caller_gets_its_own_answers(backend: str, made_bundle: Path) -> None:
    wrong: list[int] = []
    with runtimes.load(made_bundle, backend, threads=1, warmup=2) as session:

        def work(seed: int) -> None:
            for count in range(60):
                x = np.full((1 + seed % 4, 2), seed + count, np.float32)
                if not np.allclose(session.run({"x": x})["y"], (seed + count) * np.array([5, 7, 9])):
                    wrong.append(seed)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for worker in workers:
            worker.start()
        futures = [session.submit({"x": np.full((1, 2), count, np.float32)}) for count in range(100)]
        for worker in workers:
            worker.join()
        for count, future in enumerate(futures):
            np.testing.assert_allclose(future.result(20)["y"], [[5 * count, 7 * count, 9 * count]], rtol=1e-6)
    assert not wrong


def test_submit_returns_before_the_run_and_hands_its_error_on(gate: tuple[Gate, runtimes.Session]) -> None:
    made, session = gate
    future = session.submit(FEED)
    assert made.begun.acquire(timeout=20)
    assert not future.done()
    made.open.set()
    np.testing.assert_array_equal(future.result(20)["y"], FEED["x"] * 2)
    with pytest.raises(runtimes.FeedError, match="lacks input 'x'"):
        session.submit({}).result(20)
    session.close()


def test_asyncio(made_bundle: Path) -> None:
    async def ask(session: runtimes.Session) -> list[dict[str, np.ndarray]]:
        feeds = [{"x": np.full((1, 2), count, np.float32)} for count in range(10)]
        return await asyncio.gather(*(session.run_async(feed) for feed in feeds))

    with runtimes.load(made_bundle, "onnxruntime", graph="main", threads=1) as session:
        answers = asyncio.run(ask(session))
    np.testing.assert_allclose([answer["y"][0] for answer in answers], np.outer(np.arange(10), [5, 7, 9]), rtol=1e-6)


def test_close_waits_for_runs_in_flight_and_submitted(gate: tuple[Gate, runtimes.Session]) -> None:
    made, session = gate
    futures = [session.submit(FEED) for _ in range(6)]      # some of them are still waiting for a thread
    assert made.begun.acquire(timeout=20)
    closer = threading.Thread(target=session.close)
    closer.start()
    while not session._closing:
        pass
    with pytest.raises(RuntimesError, match=r"is closed: load the bundle again"):
        session.run(FEED)
    with pytest.raises(RuntimesError, match=r"is closed: load the bundle again"):
        session.submit(FEED)
    assert not made.runner.closed
    made.open.set()
    closer.join(20)
    assert made.runner.closed
    for future in futures:
        np.testing.assert_array_equal(future.result(20)["y"], FEED["x"] * 2)


def test_a_cancelled_run_does_not_hold_up_closing(gate: tuple[Gate, runtimes.Session]) -> None:
    made, session = gate
    futures = [session.submit(FEED) for _ in range(8)]
    for _ in range(4):
        assert made.begun.acquire(timeout=20)
    assert futures[-1].cancel()
    made.open.set()
    session.close()
    assert made.runner.closed


def test_a_callback_may_close(gate: tuple[Gate, runtimes.Session]) -> None:
    made, session = gate
    made.open.set()
    done = threading.Event()
    session.submit(FEED).add_done_callback(lambda _: (session.close(), done.set()))
    assert done.wait(20)
    assert made.runner.closed


FORKED = """
import os, sys, numpy as np, runtimes
session = runtimes.load(sys.argv[1], sys.argv[2], graph="main", threads=2)
feed = {"x": np.ones((1, 2), np.float32)}
session.run(feed)
if os.fork() == 0:
    try:
        session.run(feed)
    except runtimes.RuntimesError as error:
        print(error, flush=True)
    try:
        session.submit(feed)
    except runtimes.RuntimesError as error:
        print(error, flush=True)
    session.close()
    del session
    print("the child goes on", flush=True)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), session.run(feed)["y"].tolist(), flush=True)
session.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_use_after_a_fork_is_refused_and_destroying_it_there_hangs_nothing(backend: str, made_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, str(made_bundle), backend], capture_output=True, text=True,
                          timeout=60, cwd=Path(runtimes.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all("this is a fork of it: the backend's threads are not here" in line for line in lines[:2]), lines
    assert lines[2:] == ["the child goes on", "7 [[5.0, 7.0, 9.0]]"]
