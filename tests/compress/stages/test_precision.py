"""The stages budget and sensitivity in a run: what they leave, when they are done, and that a run goes on after one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import calibration
import compress
from compress.export import has_int8
from compress.modelfile import read_model, write_model
from compress.pipeline import RunResult
from compress.quantize.choices import Float
from compress.quantize.mixer import Mixer
from compress.quantize.probe import Effect, Probe
from compress.quantize.rig import TIMING
from compress.stages.engines import _wanted
from compress.stages.models import ModelFile
from compress.targets import get_target
from tests.said import Said

QUANTIZE = {"quantize": {"samples": 64}}


def run(small: ModuleType, files: Path, folder: Path, stages: list[Any], **changes: Any) -> RunResult:
    given = {"target": "onnxruntime-cpu", "factory": None, **changes}
    said = given.pop("progress", None)
    recipe = small.write_recipe(files, "precision.yaml", stages=stages, **given)
    return compress.run(recipe, output=folder / "out", progress=said)


def stages(result: RunResult) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage["summary"] for stage in result.record["stages"]}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIMING, "warmup_s", 0.0)
    monkeypatch.setitem(TIMING, "duration_s", 0.02)


def shipped(folder: Path) -> ModelFile:
    """The quantized model of a run."""
    (record,) = [json.loads(path.read_text()) for path in (folder / "out/store/stages").glob("*.json")
                 if json.loads(path.read_text())["stage"] == "budget"]  # fmt: skip
    return ModelFile(path=folder / "out/store/objects" / record["digest"] / "model.pt", digest=record["digest"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_both_in_a_recipe(small_files: Path, small: ModuleType, tmp_path: Path) -> None:
    listed = [QUANTIZE, {"sensitivity": {"samples": 64}}, {"budget": {"restarts": 1, "rounds": 2}}, "export"]
    result = run(small, small_files, tmp_path, listed)
    found = stages(result)
    assert list(found) == ["quantize", "sensitivity", "budget", "export", "parity"]
    assert found["sensitivity"]["metric"] == "accuracy"
    assert {part["kind"] for part in found["sensitivity"]["parts"]} == {"component", "modality", "layer"}
    assert found["budget"]["max_drop"] == 0.05
    assert found["budget"]["timed"] == ["onnxruntime-cpu"]
    page = (tmp_path / "out/report.html").read_text()
    assert 'id="sensitivity"' in page
    assert "Change of the metric over latency on onnxruntime-cpu" in page
    again = run(small, small_files, tmp_path, listed)
    assert again.done == 0
    left = {part["name"] for part in found["budget"]["parts"] if part["choice"] == "float"}
    quantization = read_model(shipped(tmp_path).path).quantization
    assert quantization is not None
    assert set(quantization.keep_float) == left


def test_a_budget_that_is_not_asked_for_is_kept_where_it_is_needed(
    small_files: Path, small: ModuleType, tmp_path: Path
) -> None:
    found = stages(run(small, small_files, tmp_path, [QUANTIZE]))["budget"]
    assert [point["name"] for point in found["points"]] == ["as quantized"]
    assert found["timed"] == []


def test_never(small_files: Path, small: ModuleType, tmp_path: Path) -> None:
    found = stages(run(small, small_files, tmp_path, [QUANTIZE, {"budget": {"when": "never"}}]))
    assert list(found) == ["quantize"]


def test_a_set_without_targets_is_told(small_files: Path, small: ModuleType, tmp_path: Path) -> None:
    feed, _ = small.samples(16, 5)
    calibration.write(tmp_path / "unlabelled", feed)
    data = {"calibration": "calibration/", "validation": str(tmp_path / "unlabelled")}
    said = Said()
    result = run(small, small_files, tmp_path, [QUANTIZE, {"sensitivity": {"samples": 16}}], data=data, progress=said)
    assert list(stages(result)) == ["quantize", "sensitivity"]
    assert "the budget is not looked at: data set 'validation' has no targets" in said.sentences
    assert stages(result)["sensitivity"]["metric"] is None


def test_interrupted_they_go_on_from_where_they_were(
    small_files: Path, small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effect, asked = Probe.effect, []

    def stopping(self: Probe, paths: tuple[str, ...]) -> Effect:
        asked.append(paths)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return effect(self, paths)

    listed = [QUANTIZE, {"sensitivity": {"samples": 64, "by": ["layer"]}}, {"budget": {"when": "never"}}]
    monkeypatch.setattr(Probe, "effect", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(small, small_files, tmp_path, listed)
    result = run(small, small_files, tmp_path, listed)
    assert len(asked) == 1 + len(set(asked))
    assert all(part["float"] is not None for part in stages(result)["sensitivity"]["parts"])

    def stop(self: Mixer, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mixer, "_open", stop)
    said = Said()
    with pytest.raises(KeyboardInterrupt):
        run(small, small_files, tmp_path, [QUANTIZE, "budget"], progress=said)
    assert said.sentences[-1].startswith("Interrupted: the best so far.")


def test_a_model_of_which_nothing_is_left_in_int8_ships_in_the_targets_float(
    small_files: Path, small: ModuleType, tmp_path: Path
) -> None:
    run(small, small_files, tmp_path, [QUANTIZE])
    quantized = shipped(tmp_path)
    target = dataclasses.replace(get_target("openvino-cpu"), scheme="x86-vnni")

    def last(model: ModelFile) -> tuple[str, str]:
        name, _, _, precision = list(_wanted(target, quantized, quantized, {"x86-vnni": model}))[-1]
        return name, precision

    assert last(quantized) == ("shipped int8, openvino-cpu", "int8")
    model = read_model(quantized.path)
    path = tmp_path / "float.pt"
    write_model(Float().put(model, ["seen.0", "seen.2", "head.0", "head.2"]), path)
    assert last(ModelFile(path=path, digest="other")) == ("shipped, nothing in int8, openvino-cpu", "bf16")
    assert not has_int8(read_model(path))
