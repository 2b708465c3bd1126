"""`compress bench` of a bundle on this machine and on a device: over a real sshd, cut in the middle, and emulated."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from calibration import write
from compress.bench import BenchConfig, BenchRecord
from compress.bench.bundled import bench_bundle
from compress.bundle import bundle
from compress.controls import Control, write_controls
from compress.device.emulator import emulator_command
from compress.errors import CompressError
from compress.export import export
from compress.golden import feeds_of
from compress.program import run_program
from compress.targets import targets
from runtimes.engine import Engine
from runtimes.engineset import EngineSet
from tests.compress import captioner
from tests.compress.quantize import networks

if TYPE_CHECKING:
    from tests.sshd import Sshd

ROOT = Path(__file__).parents[2]
ORT, RPI5 = targets()["onnxruntime-cpu"], targets()["rpi5"]
QUICK = ["--restarts", "2", "--warmup-s", "0.02", "--duration-s", "0.02", "--min-runs", "3", "--threads", "1",
         "--no-peaks"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for this machine and for a Raspberry Pi 5, the fp32 controls of both beside it, and a labelled set."""
    folder = tmp_path_factory.mktemp("device")
    quantized = {ORT: networks.quantized(networks.TwoReaders), RPI5: networks.quantized(networks.TwoReaders, "arm64")}
    model = quantized[ORT]
    plain = dataclasses.replace(model, quantization=None)
    (feed,) = networks.samples(model, 30).batches(30)
    engines = {target.name: export(one, target, folder / target.name) for target, one in quantized.items()}
    bundle(model, engines, feed, folder / "bundle")
    write_controls(
        [Control(f"original fp32, {target.name}", "original", target.name,
                 alone(export(plain, target, folder / f"{target.name}32"))) for target in quantized],
        folder / "controls", ships=[alone(engine) for engine in engines.values()],
    )
    write(folder / "validation", feed, run_program(plain, feed)["output"].argmax(1))
    return folder


def alone(engine: Engine) -> EngineSet:
    return EngineSet(engines={"forward": engine})


def command(made: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "compress", "bench", str(made / "bundle"), "--target", "onnxruntime-cpu",
            "--target", "rpi5", "--data", str(made / "validation"), "--quiet", "--json", *more]


def long(made: Path, file: Path) -> list[str]:
    """The device alone, for many minutes."""
    words = command(made, "--restarts", "500", *QUICK[2:], "--output", str(file))
    at = words.index("onnxruntime-cpu")
    return [*words[: at - 1], *words[at + 1 :]]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


@pytest.fixture
def there(sshd: Sshd, tmp_path: Path) -> Path:
    """A folder whose targets.toml gives the Raspberry Pi an address: that of the sshd."""
    row = f'version = 1\n[target.rpi5]\naddress = "{sshd.address}"\npython = "{sys.executable}"\n'
    (tmp_path / "targets.toml").write_text(row)
    return tmp_path


def wait_for(what: Callable[[], bool], seconds: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def rounds_there(file: Path) -> int:
    """Rounds on the device that the record has so far."""
    if not file.is_file():
        return 0
    rows = BenchRecord.from_json(json.loads(file.read_text())).rows
    return min(row.latency_ms.restarts if row.latency_ms else 0 for row in rows if row.target == "rpi5")


def by_name(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in record["rows"]}


@pytest.mark.slow
def test_two_targets_each_on_its_machine(made: Path, there: Path) -> None:
    done = subprocess.run(command(made, *QUICK, "--output", str(there / "out.json")), cwd=there, env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record == json.loads((there / "out.json").read_text())
    rows = by_name(record)
    assert {name: (row["machine"], row["status"]) for name, row in rows.items()} == {
        "original fp32, onnxruntime-cpu": ("local", "measured"),
        "shipped int8, onnxruntime-cpu": ("local", "measured"),
        "original fp32, rpi5": ("rpi5", "measured"),
        "shipped int8, rpi5": ("rpi5", "measured"),
    }
    assert record["complete"]
    assert set(record["machines"]) == set(record["versions"]) == {"local", "rpi5"}
    assert record["machines"]["rpi5"]["threads"] == 1
    assert record["baselines"] == {"local": "original fp32, onnxruntime-cpu", "rpi5": "original fp32, rpi5"}
    for target in ("onnxruntime-cpu", "rpi5"):
        shipped = rows[f"shipped int8, {target}"]
        assert {key: gain["against"] for key, gain in shipped["speedup"].items()} == {
            "vs_original_fp32": f"original fp32, {target}"}
        assert shipped["accuracy"]["n"] == 30
        assert shipped["accuracy"]["drop"]["verdict"] == "undecidable at n=30"
        assert shipped["telemetry"]["spin_change"] is not None
        assert shipped["precisions"]["int8"] == 3


@pytest.mark.slow
def test_a_link_cut_in_the_middle(made: Path, there: Path, sshd: Sshd) -> None:
    """Exit code 1 within 30 s, one line, and the rounds there were."""
    file = there / "bench.json"
    process = start(there, long(made, file))
    wait_for(lambda: rounds_there(file) >= 1, 120, process)
    sshd.cut()
    cut = time.monotonic()
    out, said = process.communicate(timeout=60)
    assert time.monotonic() - cut < 30
    assert process.returncode == 1
    assert said.startswith("compress: rpi5 (board)")
    assert said.endswith("; the rest was measured\n")
    assert said.count("\n") == 1
    record = json.loads(out)
    assert record == json.loads(file.read_text())
    assert not record["complete"]
    for row in record["rows"]:
        assert row["status"] == "device lost"
        assert row["reason"]
        assert 1 <= row["latency_ms"]["restarts"] < 500
        assert row["accuracy"]["n"] == 30
    assert sshd.gone_within(20)


@pytest.mark.slow
def test_a_killed_host_leaves_what_it_had(made: Path, there: Path, sshd: Sshd) -> None:
    file = there / "bench.json"
    process = start(there, long(made, file))
    wait_for(lambda: rounds_there(file) >= 1, 120, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    record = BenchRecord.from_json(json.loads(file.read_text()))
    assert not record.complete
    assert {row.status for row in record.rows} == {"partial"}
    assert rounds_there(file) >= 1
    assert list(there.glob(".*")) == []
    assert sshd.gone_within(20)


@pytest.mark.slow
def test_a_device_that_cannot_be_reached_does_not_stop_the_others(made: Path, there: Path) -> None:
    (there / "targets.toml").write_text('version = 1\n[target.rpi5]\naddress = "no-such-host.invalid"\n')
    done = subprocess.run(command(made, *QUICK, "--output", str(there / "out.json")), cwd=there, env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "there is no host of that name" in done.stderr
    assert done.stderr.count("\n") == 1
    rows = by_name(json.loads(done.stdout))
    assert {row["target"]: row["status"] for row in rows.values()} == {
        "onnxruntime-cpu": "measured", "rpi5": "failed"}


def test_a_target_without_an_address_says_how_to_give_one(made: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(made, *QUICK), cwd=tmp_path, env=environment(), capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("compress: target 'rpi5' has no address: write [target.rpi5] address = ")


@pytest.mark.slow
def test_emulated_rows_have_an_accuracy_and_no_time(made: Path, tmp_path: Path) -> None:
    try:
        emulator_command(RPI5)
    except CompressError as error:
        pytest.skip(str(error))
    record = bench_bundle(
        made / "bundle", [RPI5], data=made / "validation", config=BenchConfig(threads=1), emulate=True,
        output=tmp_path / "bench.json",
    )  # fmt: skip
    assert record.complete
    machine = record.machines["rpi5, emulated"]
    assert (machine["arch"], machine["emulated"]) == ("aarch64", True)
    for row in record.rows:
        assert (row.status, row.latency_ms, row.speedup, row.telemetry) == ("emulated", None, {}, None)
        assert row.accuracy is not None
        assert row.accuracy.value >= 0.9
        assert row.emulated_parity is not None
        assert row.emulated_parity.samples == 30
        assert row.emulated_parity.largest_difference <= 0.02 * row.emulated_parity.largest_output
    shipped = record.rows[-1]
    assert shipped.accuracy is not None
    assert shipped.accuracy.drop is not None
    assert shipped.precisions["int8"] == 3


def first_word(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    return np.asarray((outputs["caption"][:, 0] == target).astype(np.float64))


@pytest.mark.slow
def test_a_captioner_under_emulation_writes_what_it_writes_here(tmp_path: Path) -> None:
    """Two engines, the decoder once a token, captions of different lengths."""
    try:
        emulator_command(RPI5)
    except CompressError as error:
        pytest.skip(str(error))
    network = captioner.network()
    model, image = captioner.model(network), captioner.pictures(6)
    engines = {graph: {RPI5.name: export(model, RPI5, tmp_path / graph, graph=graph)} for graph in model.graphs}
    bundle(model, engines, feeds_of(model, {"image": image[:2]}), tmp_path / "bundle")
    words = captioner.captions(network, image)
    write(tmp_path / "validation", {"image": image}, np.array([row[0] for row in words]))
    record = bench_bundle(
        tmp_path / "bundle", [RPI5], data=tmp_path / "validation", metric=f"{__name__}:first_word",
        config=BenchConfig(threads=1), emulate=True,
    )  # fmt: skip
    (row,) = record.rows
    assert (row.status, row.latency_ms, row.generation) == ("emulated", None, None), row.reason
    assert row.accuracy is not None
    assert row.accuracy.value == 1.0
    assert row.emulated_parity is not None
    assert (row.emulated_parity.same_answers, row.emulated_parity.samples) == (1.0, 6)
    assert {layer.graph for layer in row.layers} == {"encoder", "decoder"}
