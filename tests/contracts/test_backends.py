"""The contract every backend that can run here passes, over the table of tiny models."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtimes.backends import BACKENDS, Runner, open_engine
from runtimes.engine import Engine, read_engine
from runtimes.errors import FeedError, RuntimesError
from runtimes.hashing import tree_files
from runtimes.session import Session
from tests.contracts.engines import make_engine, why_not
from tests.contracts.models import BY_NAME, CASES, Case

TOLERANCE = 1e-5


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := why_not(name):
        pytest.skip(reason)
    return name


class Folders(dict[tuple[str, str], Engine]):
    """The engine of each backend and case, made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, key: tuple[str, str]) -> Engine:
        backend, case = key
        self[key] = make_engine(BY_NAME[case], backend, self._root / backend / case)
        return self[key]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def engine(backend: str, folders: dict[tuple[str, str], Engine], tmp_path: Path) -> Engine:
    """A copy of the dynamic-batch engine, for a test to damage."""
    folder = tmp_path / "engine"
    shutil.copytree(folders[backend, "matmul"].path, folder)
    return read_engine(folder)


@pytest.fixture
def runner(engine: Engine) -> Iterator[Runner]:
    runner = open_engine(engine, threads=1)
    yield runner
    runner.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_are_right_and_named(case: Case, backend: str, folders: dict[tuple[str, str], Engine]) -> None:
    if case.affine and backend.startswith("tensorrt"):
        pytest.skip("TensorRT's parser refuses a zero point; tests/compress/export/test_tensorrt.py sees it refused")
    engine = folders[backend, case.name]
    with Session(engine, open_engine(engine, threads=1), "here") as session:
        outputs = session.run(case.feed)
    assert list(outputs) == [spec.name for spec in case.outputs]
    for name, expected in case.expected.items():
        np.testing.assert_allclose(outputs[name], expected, atol=TOLERANCE)
        assert outputs[name].dtype == expected.dtype


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batch_is_dynamic(batch: int, runner: Runner) -> None:
    x = np.arange(2 * batch, dtype=np.float32).reshape(batch, 2)
    expected = x @ np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_allclose(runner.run({"x": x})["y"], expected, atol=TOLERANCE)


def test_results_are_the_callers_own(runner: Runner) -> None:
    feed = {"x": np.ones((2, 2), np.float32)}
    first = runner.run(feed)["y"]
    kept = first.copy()
    second = runner.run({"x": np.zeros((2, 2), np.float32)})["y"]
    second += 7.0
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(feed["x"], np.ones((2, 2)))
    assert not np.shares_memory(first, second)


def test_results_outlive_the_runner(engine: Engine) -> None:
    runner = open_engine(engine, threads=1)
    y = runner.run({"x": np.ones((1, 2), np.float32)})["y"]
    runner.close()
    del runner
    np.testing.assert_allclose(y, [[5, 7, 9]])


def test_read_only_and_transposed_inputs_are_taken(engine: Engine) -> None:
    with Session(engine, open_engine(engine, threads=1), "here") as session:
        x = np.array([[1, 2], [1, -1]], np.float32).T
        x.flags.writeable = False
        np.testing.assert_allclose(session.run({"x": x})["y"], [[5, 7, 9], [-2, -1, 0]], atol=TOLERANCE)


@pytest.mark.parametrize(("feed", "message"), [
    ({}, "lacks input 'x'"),
    ({"x": np.ones((1, 2), np.float32), "mask": np.ones(1)}, "unknown input 'mask'"),
    ({"x": np.ones((1, 2))}, "input 'x' has dtype float64, expected float32"),
    ({"x": np.ones((1, 3), np.float32)}, "input 'x' has shape .*expected size 2 on axis 1"),
    ({"x": np.ones((5, 2), np.float32)}, "input 'x' .*batch is 5, outside 1..4"),
    ({"x": np.full((1, 2), np.nan, np.float32)}, "input 'x' has a value that is not finite"),
])
def test_wrong_feed_is_refused(feed: dict[str, np.ndarray], message: str, engine: Engine) -> None:
    with Session(engine, open_engine(engine, threads=1), "here") as session, pytest.raises(FeedError, match=message):
        session.run(feed)


def test_what_the_backend_cannot_run_is_a_runtimes_error(runner: Runner, engine: Engine) -> None:
    with pytest.raises(RuntimesError, match=str(engine.path)):
        runner.run({"x": np.ones((1, 3), np.float32)})


def test_changed_bytes_never_reach_the_backend(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree_files(engine.path)
    entry = engine.path / engine.entry
    entry.write_bytes(entry.read_bytes() + b" ")
    opener = f"{BACKENDS[engine.backend].module}.open_runner"
    monkeypatch.setattr(opener, lambda *_: pytest.fail("the backend saw them"))
    with pytest.raises(RuntimesError, match=f"{engine.entry} has SHA-256"):
        open_engine(engine, expected=expected)
    with pytest.raises(RuntimesError, match="was changed since it was read"):
        open_engine(engine)


def test_missing_and_extra_files_are_refused(engine: Engine) -> None:
    expected = tree_files(engine.path)
    (engine.path / "extra.bin").write_bytes(b"x")
    with pytest.raises(RuntimesError, match=r"extra\.bin is not listed"):
        open_engine(engine, expected=expected)
    (engine.path / "extra.bin").unlink()
    (engine.path / engine.entry).unlink()
    with pytest.raises(RuntimesError, match=f"{engine.entry} is missing"):
        open_engine(engine, expected=expected)


def test_a_link_is_refused(engine: Engine, tmp_path: Path) -> None:
    expected = tree_files(engine.path)
    entry = engine.path / engine.entry
    os.replace(entry, tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimesError, match=f"{engine.entry} is a link"):
        open_engine(engine, expected=expected)


def test_bytes_the_backend_cannot_read_are_a_runtimes_error(engine: Engine) -> None:
    (engine.path / engine.entry).write_bytes(b"<net></net>" if engine.entry.endswith(".xml") else b"\x08\x09")
    with pytest.raises(RuntimesError, match=str(engine.path)):
        open_engine(read_engine(engine.path))


def test_record_that_names_other_inputs_is_refused(engine: Engine) -> None:
    renamed = dataclasses.replace(engine, inputs=(dataclasses.replace(engine.inputs[0], name="z"),))
    with pytest.raises(RuntimesError, match=r"names the inputs \['z'\], the model has \['x'\]"):
        open_engine(renamed)
    renamed = dataclasses.replace(engine, outputs=(dataclasses.replace(engine.outputs[0], name="z"),))
    with pytest.raises(RuntimesError, match=r"names the outputs \['z'\], the model has \['y'\]"):
        open_engine(renamed)


@pytest.mark.parametrize("option", ["CACHE_DIR", "CONFIG_FILE", "session.model_external_initializers_file_folder_path"])
def test_option_that_names_a_place_is_refused(option: str, engine: Engine) -> None:
    with pytest.raises(RuntimesError, match=f"option '{option}', which an engine may not set"):
        open_engine(dataclasses.replace(engine, options={option: "/somewhere"}))


def test_threads_must_be_positive(engine: Engine) -> None:
    with pytest.raises(RuntimesError, match="threads must be at least 1, got 0"):
        open_engine(engine, threads=0)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_thread_counts(threads: int | None, engine: Engine) -> None:
    runner = open_engine(engine, threads=threads)
    np.testing.assert_allclose(runner.run({"x": np.ones((1, 2), np.float32)})["y"], [[5, 7, 9]])
    runner.close()


def test_two_sessions_at_once(backend: str, folders: dict[tuple[str, str], Engine]) -> None:
    cases = BY_NAME["matmul"], BY_NAME["qdq_matmul"]
    runners = [open_engine(folders[backend, case.name], threads=1) for case in cases]
    for _ in range(3):
        for runner, case in zip(runners, cases, strict=True):
            np.testing.assert_allclose(runner.run(case.feed)["y"], case.expected["y"], atol=TOLERANCE)
    runners[0].close()
    np.testing.assert_allclose(runners[1].run(cases[1].feed)["y"], cases[1].expected["y"], atol=TOLERANCE)
    runners[1].close()


def test_one_runner_from_several_threads(runner: Runner) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.full((2, 2), seed, np.float32)
        for _ in range(50):
            if not np.allclose(runner.run({"x": x})["y"], seed * np.array([5, 7, 9])):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_closed_session_says_so(engine: Engine) -> None:
    session = Session(engine, open_engine(engine, threads=1), "here")
    session.close()
    session.close()
    with pytest.raises(RuntimesError, match="is closed"):
        session.run({"x": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize("case", ["matmul", "qdq_matmul"])
def test_layers_say_what_really_ran(case: str, backend: str, folders: dict[tuple[str, str], Engine]) -> None:
    runner = open_engine(folders[backend, case], threads=1)
    layers = runner.layers(BY_NAME[case].feed)
    runner.close()
    product = [layer for layer in layers if layer.type.startswith(("MatMul", "FullyConnected"))]
    assert [layer.precision for layer in product] == ["int8" if case == "qdq_matmul" else "f32"]
    assert all(layer.time_us is not None and layer.time_us >= 0 for layer in product)
    assert not [layer for layer in layers if layer.type in ("Const", "Constant", "Input", "Output")]


def test_layers_need_no_feed_and_leave_nothing_behind(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert runner.layers()
    assert not list((tmp_path / "work").iterdir())


def test_versions(backend: str, runner: Runner) -> None:
    assert runner.versions()[backend][0].isdigit()
