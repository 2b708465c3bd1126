"""The bench of a bundle, beside its controls and alone, with times so short that only the structure is meant."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibration import write
from compress.bench import BenchConfig, BenchRecord
from compress.bench.bundled import bench_bundle
from compress.bundle import bundle
from compress.cli import cli
from compress.controls import Control, write_controls
from compress.errors import CompressError
from compress.export import export
from compress.program import run_program
from compress.targets import targets
from runtimes.engine import Engine, read_engine, write_engine
from runtimes.engineset import EngineSet
from runtimes.errors import RuntimesError
from tests.compress.quantize import networks

ORT = targets()["onnxruntime-cpu"]
QUICK = BenchConfig(restarts=1, warmup_s=0.0, duration_s=0.0, min_runs=3, threads=1, peaks=False)


def alone(engine: Engine) -> EngineSet:
    return EngineSet(engines={"forward": engine})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an int8 engine, its fp32 controls of two targets beside it, and a labelled set."""
    folder = tmp_path_factory.mktemp("bundled")
    model = networks.quantized(networks.TwoReaders)
    plain = dataclasses.replace(model, quantization=None)
    (feed,) = networks.samples(model, 30).batches(30)
    ships = export(model, ORT, folder / "int8")
    bundle(model, {ORT.name: ships}, feed, folder / "bundle")
    control = export(plain, ORT, folder / "fp32")
    write_controls(
        [Control("original fp32", "original", ORT.name, alone(control)),
         Control("elsewhere", "original", "openvino-cpu", alone(control))],
        folder / "controls", ships=[alone(ships)],
    )
    write(folder / "validation", feed, run_program(plain, feed)["output"].argmax(1))
    return folder


def test_beside_its_controls_with_accuracy(made: Path) -> None:
    record = bench_bundle(made / "bundle", [ORT], data=made / "validation", config=QUICK)
    rows = {row.name: row for row in record.rows}
    assert list(rows) == ["original fp32", "shipped int8, onnxruntime-cpu"]
    assert record.baselines == {"local": "original fp32"}
    assert {row.status for row in record.rows} == {"measured"}
    shipped = rows["shipped int8, onnxruntime-cpu"]
    assert list(shipped.speedup) == ["vs_original_fp32"]
    original = rows["original fp32"].accuracy
    assert original is not None
    assert (original.value, original.n) == (1.0, 30)
    assert shipped.accuracy is not None
    assert shipped.accuracy.value >= 0.9
    assert shipped.precisions.get("int8") == 3
    assert shipped.latency_ms is not None
    assert shipped.latency_ms.runs >= 3


def test_the_command_says_what_is_undecidable_and_too_small(made: Path, tmp_path: Path) -> None:
    """Thirty samples cannot tell a drop of a point, nor three runs a percentile."""
    words = ["bench", str(made / "bundle"), "--target", ORT.name, "--data", str(made / "validation"), "--restarts", "1",
             "--warmup-s", "0", "--duration-s", "0", "--min-runs", "3", "--threads", "1", "--no-peaks", "--quiet"]
    done = CliRunner().invoke(cli, [*words, "--output", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    assert "undecidable at n=30" in done.output
    assert done.output.count("n too small") == 4
    record = BenchRecord.from_json(json.loads((tmp_path / "bench.json").read_text()))
    assert record.rows[1].accuracy is not None
    assert record.rows[1].accuracy.drop is not None
    assert record.rows[1].accuracy.drop.verdict == "undecidable at n=30"


def test_alone_it_is_its_own_baseline_and_claims_no_speed_up(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bundle", tmp_path / "copy")
    record = bench_bundle(tmp_path / "copy", [ORT], config=QUICK)
    (row,) = record.rows
    assert (record.baselines, row.role, row.speedup, row.accuracy) == ({"local": row.name}, "shipped", {}, None)
    assert record.config["batch"] == 1  # the golden feed's first sample


def test_named_controls_must_be_there(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"controls.json is damaged or missing"):
        bench_bundle(made / "bundle", [ORT], controls=tmp_path, config=QUICK)


def test_a_target_the_bundle_lacks_or_cannot_reach_is_refused(made: Path) -> None:
    with pytest.raises(CompressError, match="has no engine for target 'openvino-cpu': it has those of onnxruntime-cpu"):
        bench_bundle(made / "bundle", [targets()["openvino-cpu"]], config=QUICK)
    away = dataclasses.replace(ORT, reach="ssh")
    with pytest.raises(CompressError, match=r"has no address: write \[target.onnxruntime-cpu\] address = .* --emulate"):
        bench_bundle(made / "bundle", [away], config=QUICK)
    with pytest.raises(CompressError, match=r"targets are onnxruntime-cpu, onnxruntime-cpu: name each .* once"):
        bench_bundle(made / "bundle", [ORT, ORT], config=QUICK)


def test_a_damaged_bundle_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle/golden/feed.npz").write_bytes(b"")
    with pytest.raises(RuntimesError, match=r"feed.npz is not .*manifest.json"):
        bench_bundle(tmp_path / "bundle", [ORT], config=QUICK)


def test_progress_names_what_comes(made: Path) -> None:
    told: list[tuple[int, int, str]] = []
    bench_bundle(made / "bundle", [ORT], config=QUICK, progress=lambda *step: told.append(step))
    assert told == [
        (0, 2, "original fp32: round 1"), (1, 2, "shipped int8, onnxruntime-cpu: round 1"), (2, 2, "done"),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "reason"), [
    ("", r"is a folder: name the record's file, such as .*/bench\.json"),
    ("missing/bench.json", r"cannot be written to .*missing/bench\.json \(No such file or directory\)"),
    ("file/bench.json", r"cannot be written to .*file/bench\.json \(Not a directory\)"),
])  # fmt: skip
def test_where_no_record_can_be_written_nothing_is_measured(
    made: Path, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    told: list[tuple[int, int, str]] = []
    with pytest.raises(CompressError, match=reason):
        bench_bundle(made / "bundle", [ORT], config=QUICK, output=tmp_path / name,
                     progress=lambda *step: told.append(step))
    assert (told, [path.name for path in tmp_path.iterdir()]) == ([], ["file"])


def test_controls_of_another_model_are_refused(made: Path, tmp_path: Path) -> None:
    control = made / "controls/0/forward"
    shutil.copytree(control, tmp_path / "other")
    engine = read_engine(tmp_path / "other")
    renamed = [dataclasses.replace(spec, name=f"{spec.name}2") for spec in engine.inputs]
    (tmp_path / "other/engine.json").unlink()
    other = write_engine(
        tmp_path / "other", backend=engine.backend, device=engine.device, precision=engine.precision,
        entry=engine.entry, inputs=renamed, outputs=engine.outputs, options={}, source=engine.source, built_with={},
        state=engine.state)
    ships = read_engine(made / "int8")
    write_controls([Control("original fp32", "original", ORT.name, alone(other))], tmp_path / "controls",
                   ships=[alone(ships)])
    with pytest.raises(CompressError, match=r"control 'original fp32' in .*controls has other inputs or outputs than"):
        bench_bundle(made / "bundle", [ORT], controls=tmp_path / "controls", config=QUICK)


def test_controls_of_another_bundle_are_refused(made: Path, tmp_path: Path) -> None:
    control = read_engine(made / "fp32")
    write_controls([Control("original fp32", "original", ORT.name, alone(control))], tmp_path / "controls",
                   ships=[alone(control)])
    with pytest.raises(CompressError, match="holds the controls of another bundle"):
        bench_bundle(made / "bundle", [ORT], controls=tmp_path / "controls", config=QUICK)


def test_an_engine_that_ships_and_fails_is_exit_code_1(made: Path, tmp_path: Path) -> None:
    words = ["bench", str(made / "bundle"), "--target", ORT.name, "--restarts", "1", "--warmup-s", "0",
             "--duration-s", "0", "--timeout-s", "0.001", "--no-peaks", "--output", str(tmp_path / "bench.json")]
    done = CliRunner().invoke(cli, [*words, "--quiet"])
    assert done.exit_code == 1
    assert done.stderr == ("compress: shipped int8, onnxruntime-cpu: no result after 0.001 s: the process was ended; "
                           "the rest was measured\n")
    rows = BenchRecord.from_json(json.loads((tmp_path / "bench.json").read_text())).rows
    assert [row.status for row in rows] == ["failed", "failed"]
