"""A device over a plain local process: what is copied, jobs and their failures, engines built there."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.bench.agent import AgentError, run_here
from compress.device import Device, DeviceLost, open_device
from compress.device.facts import Facts, checked_facts
from compress.device.link import Link
from compress.targets import get_target
from runtimes.arrays import read_arrays, read_batches, write_arrays
from runtimes.engine import read_engine, write_engine
from runtimes.engineset import read_engines
from runtimes.hashing import file_digest
from runtimes.machine import machine_facts
from tests.compress.device.jobs import QUICK, local_command, make_chain_job, make_job, quick
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.test_chain import STEPS


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with quick(local_command(tmp_path / "cache")) as device:
        yield device


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_job_gives_what_it_gives_here(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    here = run_here(job, tmp_path / "here", 60)
    expected = (tmp_path / "job" / "outputs.npz").read_bytes()
    package = device.copied_bytes
    there = device.agent(job, tmp_path / "there", 60)
    assert (tmp_path / "job" / "outputs.npz").read_bytes() == expected
    assert there.keys() == here.keys()
    assert there["samples"] == 7
    assert device.copied_bytes - package == size_of(tmp_path / "job" / "engine") + sum(
        (tmp_path / "job" / name).stat().st_size for name in ("feed.npz", "0/0000.npz", "1/0000.npz"))
    copied = device.copied_bytes
    for number in range(2):
        device.agent({**job, "outputs": None}, tmp_path / str(number), 60)
    assert device.copied_bytes == copied
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"job.json", "result.json", "stderr.txt"}
    assert not [path for path in (tmp_path / "job").iterdir() if path.name.startswith(".")]


def test_a_job_of_several_engines(device: Device, tmp_path: Path) -> None:
    """A captioner: two engines and how they feed each other."""
    job = make_chain_job(tmp_path)
    result = device.agent(job, tmp_path / "run", 60)
    assert result["digest"] == read_engines(job, "job").digest
    assert (result["samples"], result["generation"]["steps"]) == (3, STEPS)
    found = [list(row) for batch in read_batches(tmp_path / "outputs.npz") for row in batch["caption"]]
    assert found == networks.generate(networks.X, STEPS)
    with pytest.raises(AgentError, match=r"^board: the engines of decoder, encoder: chain has no outputs"):
        device.agent({**job, "chain": {**job["chain"], "outputs": {}}}, tmp_path / "run", 60)


def test_only_what_changed_is_copied(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device.agent(job, tmp_path / "run", 60)
    before = device.copied_bytes
    write_arrays(tmp_path / "feed.npz", {"x": np.full((1, 2), 7, np.float32)})
    device.agent(job, tmp_path / "run", 60)
    assert device.copied_bytes - before == (tmp_path / "feed.npz").stat().st_size


def test_an_engine_that_changed_is_measured_as_it_is_now(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    first = device.agent(job, tmp_path / "run", 60)["digest"]
    (tmp_path / "engine" / "notes.txt").write_text("an added file")
    second = device.agent(job, tmp_path / "run", 60)["digest"]
    assert first != second == read_engine(tmp_path / "engine").digest


def test_shards_with_one_name_stay_apart(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device.agent(job, tmp_path / "run", 60)
    x = np.concatenate([read_arrays(tmp_path / f"{number}/0000.npz")["x"] for number in (0, 1)])
    (outputs,) = read_batches(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["y"], x @ [[1, 2, 3], [4, 5, 6]], rtol=1e-5)


def test_odd_file_names(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path / "it's; a $folder")
    odd = tmp_path / "it's; a $folder" / "fe*ed?.npz"
    Path(job["latency"]["feed"]).rename(odd)
    job["latency"]["feed"] = str(odd)
    assert device.agent(job, tmp_path / "run", 60)["samples"] == 7


@pytest.mark.parametrize(("change", "message"), [
    ({"threads": 0}, r"^board: threads must be at least 1, got 0"),
    ({"latency": None, "outputs": None, "threads": "two"}, r"^board: measurement job: 'threads' must be an integer"),
    ({"engines": {"main": "/nowhere"}}, r"^board: .* is not an engine: it has no engine.json"),
])
def test_a_job_that_fails(device: Device, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    job = make_job(tmp_path)
    with pytest.raises(AgentError, match=message) as caught:
        device.agent({**job, **change}, tmp_path / "run", 60)
    assert not isinstance(caught.value, DeviceLost)
    assert not (tmp_path / "outputs.npz").exists()
    assert device.agent(job, tmp_path / "run", 60)["samples"] == 7      # the next one runs


def test_a_file_that_is_not_here(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "0/0000.npz").unlink()
    with pytest.raises(AgentError, match=r"0/0000.npz cannot be read \(No such file or directory\)"):
        device.agent(job, tmp_path / "run", 60)


def test_a_link_in_an_engine(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "engine" / "weights").symlink_to("/etc/passwd")
    with pytest.raises(AgentError, match="weights is a link or a special file"):
        device.agent(job, tmp_path / "run", 60)


def test_a_job_that_takes_too_long(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path, duration_s=60)
    with pytest.raises(AgentError, match=r"^board: no result after 1.5 s: the process was ended$"):
        device.agent(job, tmp_path / "run", 1.5)
    assert device.facts()["cores"] == os.cpu_count()


def test_a_damaged_file_there_is_sent_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    copied = []
    for _ in range(2):
        with quick(local_command(tmp_path / "cache")) as device:
            device.agent(job, tmp_path / "run", 60)
            copied.append(device.copied_bytes)
        model = max((tmp_path / "cache" / "files").iterdir(), key=lambda path: path.stat().st_size)
        size = model.stat().st_size
        model.chmod(0o644)
        model.write_bytes(b"damaged" + model.read_bytes()[7:])
    assert copied[1] == size


def test_a_file_damaged_between_two_jobs_is_sent_again(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device.agent(job, tmp_path / "run", 60)
    feed = tmp_path / "feed.npz"
    stored = tmp_path / "cache" / "files" / file_digest(feed)
    stored.chmod(0o644)
    os.truncate(stored, 100)
    before = device.copied_bytes
    assert device.agent(job, tmp_path / "run", 60)["samples"] == 7
    assert device.copied_bytes - before == feed.stat().st_size


def test_copying_is_shown(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    job = make_job(tmp_path)
    (tmp_path / "engine" / "weights.bin").write_bytes(os.urandom(3_000_000))
    size = size_of(tmp_path / "engine")
    with Device(Link(local_command(tmp_path / "cache"), "board", **QUICK), "board",
                sent=lambda *said: seen.append(said)) as device:
        device.agent({**job, "outputs": None}, tmp_path / "run", 60)
        engine = [entry for entry in seen if entry[1] == size]
        assert [done for done, _, _ in engine] == sorted({done for done, _, _ in engine})
        assert len(engine) >= 12
        assert engine[-1] == (size, size, "3.0 of 3.0 MB to board")
        seen.clear()
        device.agent({**job, "outputs": None}, tmp_path / "run", 60)
        assert seen == []


def test_a_device_without_room_is_sent_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 20 << 20)")
    job = make_job(tmp_path)
    (tmp_path / "engine" / "weights.bin").write_bytes(bytes(9_000_000))
    with quick(["env", f"PYTHONPATH={hooks}", *local_command(tmp_path / "cache")]) as device:
        before = device.copied_bytes
        with pytest.raises(AgentError, match=r"^board has room for 4 MB more in its cache folder, and 9 MB are "):
            device.agent(job, tmp_path / "run", 60)
        assert device.copied_bytes == before
        (tmp_path / "engine" / "weights.bin").unlink()
        assert device.agent(job, tmp_path / "run", 60)["samples"] == 7


def test_a_full_disk_here_ends_the_session(device: Device, tmp_path: Path) -> None:
    """What is still on its way must not be taken for the answer to the next request."""
    device.agent(make_job(tmp_path), tmp_path / "run", 60)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            device._fetch("result.json", tmp_path / "fetched")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.glob("*fetched*"))
    with pytest.raises(DeviceLost, match="board is not connected any more"):
        device.facts()


def test_an_outputs_folder_that_is_gone_leaves_the_session_in_step(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device.agent(job, tmp_path / "run", 60)
    with pytest.raises(FileNotFoundError):
        device._fetch("result.json", tmp_path / "nowhere" / "x")
    assert device.facts()["cores"] == os.cpu_count()


@pytest.mark.parametrize(("facts", "message"), [
    ({"gpus": 3}, r"Expected `array \| null`, got `int` - at `\$.gpus`"),
    ({"gpus": ["RTX"]}, "Expected `object`, got `str`"),
    ({"gpus": [{"vendor": ["deep"]}]}, "got `array`"),
    ({"backends": ["numpy"]}, r"Expected `object \| null`, got `array` - at `\$.backends`"),
    ({"jetpack": "6.2\x1b[2J"}, "matching regex"),
    ({"cpu": "x" * 501}, "length <= 500"),
    ({"memory_bytes": 10**400}, "."),
    ({"memory_bytes": -1}, ">= 0"),
    ({"cores_usable": "many"}, "got `str`"),
    ({"clock_max_mhz": float("nan")}, "."),
])
def test_facts_of_another_form(
    device: Device, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Device, "_parse", lambda self, data, what: facts)
    with pytest.raises(AgentError, match=rf"^board: its facts are not what this version knows \(.*{message}"):
        device.facts()


def test_every_fact_is_known() -> None:
    assert set(machine_facts()) <= set(Facts.__struct_fields__)
    assert checked_facts(machine_facts()).keys() == machine_facts().keys()
    assert checked_facts({"cpu": None, "of a later version": {}}) == {"cpu": None}


def test_a_device_that_measured_something_else(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "_result", lambda self, folder: {"digest": "f" * 64})
    with pytest.raises(AgentError, match=r"board measured engine ffffffffffff…, not .* which must have changed"):
        device.agent(make_job(tmp_path), tmp_path / "run", 60)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The device's largest file is limited, which fails as a full disk does."""
    job = make_job(tmp_path)
    (tmp_path / "engine" / "weights.bin").write_bytes(os.urandom(8 << 20))
    command = ["sh", "-c", 'ulimit -f 2048; trap "" XFSZ; exec "$@"', "sh", *local_command(tmp_path / "cache")]
    with quick(command) as device:
        with pytest.raises(AgentError, match=r"^board: \[Errno 27\] File too large"):
            device.agent(job, tmp_path / "run", 60)
        assert device.facts()["cores"]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size >= 1 << 20]
    assert kept == []


def later(folder: Path) -> Path:
    """An engine that is to be built on a device."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"a model")
    case = BY_NAME["matmul"]
    write_engine(folder, backend="tensorrt", device="GPU", precision="int8", entry="model.onnx", inputs=case.inputs,
                 outputs=case.outputs, options={}, source="0" * 64, built_with={}, state="build on the device")
    return folder


BUILDER = """
import sys
class Fake:
    def find_spec(self, name, path=None, target=None):
        if name == "runtimes.built":
            import importlib.machinery, importlib.util
            return importlib.util.spec_from_file_location(name, {path!r})
sys.meta_path.insert(0, Fake())
"""
BUILT = """
import dataclasses, os, shutil
from pathlib import Path
from runtimes.engine import read_engine
def built_engine(engine, cache=None):
    assert engine.state == "build on the device"
    print("building", (engine.path / "model.onnx").read_text())
    folder = Path(os.environ["COMPRESS_CACHE"]) / "engines" / "made"
    if not folder.exists():
        shutil.copytree({ready!r}, folder)
    return read_engine(folder)
"""


def test_an_engine_built_there(tmp_path: Path) -> None:
    """The device's builder is a fake one that returns an ONNX Runtime engine; the rest is real."""
    job = make_job(tmp_path)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BUILDER.format(path=str(hooks / "fake_built.py")))
    (hooks / "fake_built.py").write_text(BUILT.format(ready=job["engines"]["main"]))
    command = ["env", f"PYTHONPATH={hooks}", *local_command(tmp_path / "cache")]
    engine = read_engine(later(tmp_path / "later"))
    with quick(command) as device:
        built = device.build(engine, tmp_path / "built")
        assert built.path == tmp_path / "built"
        assert built.digest == read_engine(job["engines"]["main"]).digest
        assert (built.state, built.precision, built.entry) == ("runnable", "fp32", "model.onnx")
        assert (tmp_path / "built" / "stderr.txt").read_text() == "building a model\n"
        result = device.agent({**job, "engines": {"main": str(built.path)}}, tmp_path / "run", 60)
        assert result["digest"] == built.digest
        assert result["samples"] == 7


def test_an_engine_that_cannot_be_built_there(device: Device, tmp_path: Path) -> None:
    engine = read_engine(later(tmp_path / "later"))
    with pytest.raises(AgentError, match=r"^board: .*(is not an ONNX model|build.json is missing|tensorrt)"):
        device.build(engine, tmp_path / "built")
    assert device.facts()["cores"] == os.cpu_count()


def test_a_build_whose_record_is_damaged(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = read_engine(later(tmp_path / "later"))
    monkeypatch.setattr(Device, "_run", lambda *arguments, **fields: None)
    for result in ({}, {"path": "/x", "digest": "0", "record": {"entry": "../x"}}):
        monkeypatch.setattr(Device, "_result", lambda self, folder, result=result: result)
        with pytest.raises(AgentError, match="board: the engine it built"):
            device.build(engine, tmp_path / "built")


def test_the_job_is_kept_as_it_was_asked(device: Device, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device.agent(job, tmp_path / "run", 60)
    assert json.loads((tmp_path / "run" / "job.json").read_text()) == job


@pytest.mark.slow
def test_emulated(tmp_path: Path) -> None:
    """The same outputs, within rounding, from an ARM64 user-space."""
    from compress.device.emulator import emulator_command
    from compress.errors import CompressError

    try:
        emulator_command(get_target("rpi5"))
    except CompressError as error:
        pytest.skip(f"no emulated device: {error}")
    job = make_job(tmp_path)
    with open_device(get_target("rpi5"), emulate=True) as device:
        assert device.emulated
        assert device.facts()["arch"] == "aarch64"
        result = device.agent(job, tmp_path / "run", 300)
    assert result["machine"]["arch"] == "aarch64"
    x = np.concatenate([read_arrays(tmp_path / f"{number}/0000.npz")["x"] for number in (0, 1)])
    (outputs,) = read_batches(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["y"], x @ [[1, 2, 3], [4, 5, 6]], rtol=1e-5)
    with open_device(get_target("rpi5"), emulate=True) as device:
        device.agent(job, tmp_path / "again", 300)
        assert device.copied_bytes == 0
