"""The stages export and bench for a target that is another machine: its controls, its address, and its loss."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import compress
from compress.bench.measured import Measured
from compress.cli import cli
from compress.errors import CompressError
from compress.progress import Progress
from tests.said import Said

if TYPE_CHECKING:
    from tests.sshd import Sshd

Copy = Callable[[Path], Path]
TARGETS = ["onnxruntime-cpu", "rpi5", "jetson-orin-nano"]


@pytest.fixture
def folder(small_files: Path, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder for targets.toml, and a recipe that quantizes, exports and benches."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(small: ModuleType, small_files: Path, folder: Path, targets: list[str], said: Progress) -> dict[str, Any]:
    stages = [{"quantize": {"samples": 64}}, {"export": {}}, {"bench": small.BENCH}]
    recipe = small.write_recipe(small_files, "away.yaml", stages=stages, target=targets, factory=None)
    return dict(compress.run(recipe, output=folder / "out", progress=said).record)


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in record["bench"]["rows"] if row["name"] == name]
    return dict(found)


def test_other_machines_get_their_controls_and_are_told_to_need_an_address(
    small: ModuleType, small_files: Path, folder: Path
) -> None:
    said = Said()
    record = run(small, small_files, folder, TARGETS, said)
    assert {row["name"]: row["status"] for row in record["bench"]["rows"]} == {
        "original fp32, onnxruntime-cpu": "measured", "shipped int8, onnxruntime-cpu": "measured",
        "original fp32, rpi5": "built, not run here", "shipped int8, rpi5": "built, not run here",
        "original fp32, jetson-orin-nano": "build on the device",
        "original fp16, jetson-orin-nano": "build on the device",
        "shipped int8, jetson-orin-nano": "build on the device",
    }
    assert list(record["bench"]["machines"]) == ["local"]
    assert record["bench"]["complete"]
    assert [sentence.partition(":")[0] for sentence in said.sentences] == [
        f"{name} is not measured, because it has no address" for name in TARGETS[1:]]
    controls = json.loads((folder / "out/controls/controls.json").read_text())["controls"]
    assert [entry["target"] for entry in controls] == ["onnxruntime-cpu", "rpi5", *["jetson-orin-nano"] * 2]


@pytest.mark.slow
def test_an_address_is_enough(small: ModuleType, small_files: Path, folder: Path, sshd: Sshd) -> None:
    text = f'version = 1\n[target.rpi5]\naddress = "{sshd.address}"\npython = "{sys.executable}"\n'
    (folder / "targets.toml").write_text(text)
    said = Said()
    record = run(small, small_files, folder, ["rpi5"], said)
    shipped = row(record, "shipped int8, rpi5")
    assert (shipped["status"], shipped["machine"], said.sentences) == ("measured", "rpi5", [])
    assert shipped["speedup"]["vs_original_fp32"]["against"] == "original fp32, rpi5"
    assert record["machine"]["cores"] >= 1


def test_a_lost_device_is_measured_again_by_the_next_run(
    small: ModuleType, small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "targets.toml").write_text('version = 1\n[target.rpi5]\naddress = "pi@kitchen"\n')
    asked: list[str] = []

    def unreachable(target: Any, **_: Any) -> Any:
        asked.append(target.address)
        raise CompressError("rpi5 (pi@kitchen) does not answer")

    monkeypatch.setattr("compress.device.open_device", unreachable)
    for attempt in (1, 2):
        said = Said()
        record = run(small, small_files, folder, ["onnxruntime-cpu", "rpi5"], said)
        assert asked == ["pi@kitchen"] * attempt
        assert not record["bench"]["complete"]
        assert row(record, "shipped int8, onnxruntime-cpu")["status"] == "measured"
        lost = row(record, "shipped int8, rpi5")
        assert (lost["status"], lost["reason"]) == ("failed", "rpi5 (pi@kitchen) does not answer")
        assert said.sentences == []
        assert "incomplete" in (folder / "out/report.html").read_text()
    (folder / "out/report.html").unlink()
    done = CliRunner().invoke(cli, ["run", str(small_files / "away.yaml"), "--output", str(folder / "out"), "--quiet"])
    assert (done.exit_code, done.stderr) == (
        1, "compress: rpi5 (pi@kitchen) does not answer; the rest was measured, and the same command measures again\n")
    assert not json.loads((folder / "out/report.json").read_text())["bench"]["complete"]


def test_a_file_in_the_bundle_is_told_before_the_run(small: ModuleType, small_files: Path, folder: Path) -> None:
    """The bundle is written last, and a run may be long."""
    bundle = folder / "out/bundle"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text('{"format": "compress.bundle", "version": 2, "files": {}}')
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(CompressError, match=r"bundle is replaced whole, and 'notes.txt' in it is not of the bundle"):
        run(small, small_files, folder, ["onnxruntime-cpu"], Said())
    assert not (folder / "out/store").exists()


def test_an_engine_that_ships_and_fails_is_measured_again_by_the_next_run(
    small: ModuleType, small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: Any, result: Any) -> None:
        if self.candidate.role == "shipped":
            raise CompressError("the process was killed by SIGKILL")
        add(self, result)

    add = Measured.add_round
    with monkeypatch.context() as patch:
        patch.setattr(Measured, "add_round", out_of_memory)
        recipe = small.write_recipe(
            small_files, "away.yaml", stages=[{"export": {}}, {"bench": small.BENCH}], target=["onnxruntime-cpu"],
            factory=None)
        result = compress.run(recipe, output=folder / "out")
        assert result.losses == ("shipped fp32, onnxruntime-cpu: the process was killed by SIGKILL",)
    assert compress.run(recipe, output=folder / "out").losses == ()
