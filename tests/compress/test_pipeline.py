from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import compress
import runtimes
from calibration.errors import CalibrationError
from compress.errors import CompressError
from compress.pipeline import RunResult, _suited
from compress.progress import Progress
from compress.prune.rounding import Rounding
from compress.quantize.collect import Collector
from compress.recipe import read_recipe
from compress.store import DiskFullError
from compress.targets import get_target
from tests.said import Said

Copy = Callable[[Path], Path]
BUILT = [("original", "fp32"), ("control", "fp32"), ("original", "bf16"), ("control", "bf16"), ("shipped", "int8")]


def done(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The stages that only the second set of records has, in alphabetical order."""
    return sorted(record["stage"] for key, record in after.items() if key not in before)


def rerun(small: ModuleType, folder: Path, progress: Progress | None = None, **changes: Any) -> RunResult:
    return compress.run(small.write_recipe(folder, **changes), progress=progress)


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(finished: Path, small: ModuleType) -> None:
    out = finished / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "bundle", "controls", "report.html", "report.json", "store"]  # fmt: skip
    assert [list((out / "store" / name).iterdir()) for name in ("tmp", "scratch")] == [[], []]
    record = json.loads((out / "report.json").read_text())
    assert [(stage["stage"], stage.get("target_scheme")) for stage in record["stages"]] == [
        ("prune", None), ("distill", None), ("quantize", record["stages"][2]["target_scheme"]),
        ("distill", record["stages"][2]["target_scheme"]), ("budget", record["stages"][2]["target_scheme"]),
        ("export", None), ("parity", None), ("bench", None),
    ]  # fmt: skip
    assert (record["name"], record["command"]) == ("tiny", "compress run recipe.yaml")
    assert {kind: entry["count"] for kind, entry in record["data"].items()} == {
        "calibration": 96, "validation": 128, "train": 256}  # fmt: skip
    assert record["bundle"]["files"] == len(small.contents(out / "bundle"))
    assert record["verdict"]["max_drop"] == 0.05
    roles = [(row["role"], row["precision"]) for row in record["bench"]["rows"] if row["target"] == "openvino-cpu"]
    assert roles == BUILT
    assert record["parity"]["passed"]


def test_export_tells_its_time_and_size(finished: Path, small: ModuleType) -> None:
    record = json.loads((finished / "out/report.json").read_text())
    (export,) = [stage for stage in record["stages"] if stage["stage"] == "export"]
    made = [entry for entry in small.stages(finished / "out").values() if entry["stage"] in ("onnx", "engine")]
    assert len(made) == 3 + 8
    assert export["seconds"] == pytest.approx(sum(entry["seconds"] for entry in made))
    assert export["peak_memory_bytes"] == max(entry["peak_memory_bytes"] for entry in made)
    assert not export["reused"]
    assert [entry["precision"] for entry in export["summary"]["built"]] == [
        "fp32", "fp32", "bf16", "bf16", "int8", "fp32", "fp32", "int8"]  # fmt: skip


def test_the_bundle_answers_as_the_report_says(finished: Path, small: ModuleType) -> None:
    feed, label = small.samples(128, 3)  # the validation set
    record = json.loads((finished / "out/report.json").read_text())
    for target in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(finished / "out/bundle", target=target, self_test=True) as session:
            answers = np.concatenate([
                session.run({name: array[i : i + 32] for name, array in feed.items()})["output"].argmax(-1)
                for i in range(0, 128, 32)
            ])  # fmt: skip
            (row,) = [row for row in record["bench"]["rows"] if row["digest"] == session.digest]
        assert (row["role"], row["target"]) == ("shipped", target)
        assert row["accuracy"]["value"] == pytest.approx((answers == label).mean(), abs=1e-9)


def test_a_second_run_redoes_nothing(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder = copy_of(finished)
    before = {name: small.contents(folder / "out" / name) for name in ("bundle", "controls", "store/stages")}
    again = compress.run(folder / "recipe.yaml", command="compress run recipe.yaml")
    assert (again.done, again.reused) == (0, len(before["store/stages"]))
    assert {name: small.contents(folder / "out" / name) for name in before} == before
    first = json.loads((finished / "out/report.json").read_text())
    second = json.loads((folder / "out/report.json").read_text())
    assert all(stage.pop("reused") for stage in second["stages"])
    for stage in first["stages"]:
        assert not stage.pop("reused")
    assert second == first


# --- what is redone ---------------------------------------------------------------------------------------------------


def test_a_changed_setting_redoes_its_stage_and_what_depends_on_it(
    finished: Path, small: ModuleType, copy_of: Copy
) -> None:
    folder = copy_of(finished)
    before = small.stages(folder / "out")
    stages = [*small.STAGES[:5], {"bench": {**small.BENCH, "min_runs": 4}}]
    rerun(small, folder, stages=stages)
    benched = small.stages(folder / "out")
    assert done(before, benched) == ["bench"]
    stages = [*small.STAGES[:2], {"quantize": {"samples": 96}}, *small.STAGES[3:5]]
    rerun(small, folder, stages=stages)
    after = small.stages(folder / "out")
    # The largest value is among the samples added. The float model's engines stay, each target's int8 one is new.
    assert done(benched, after) == ["budget", "distill", "engine", "engine", "onnx", "parity", "quantize"]


def test_other_ranges_are_chosen_without_another_pass(
    finished: Path, small: ModuleType, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_again(*_: object) -> None:
        raise AssertionError("the samples were run again")

    folder = copy_of(finished)
    before = small.stages(folder / "out")
    monkeypatch.setattr(Collector, "__call__", run_again)
    changed = {"quantize": {**small.STAGES[2]["quantize"], "ranges": "mse"}}
    rerun(small, folder, stages=[*small.STAGES[:2], changed])
    assert done(before, small.stages(folder / "out")) == ["budget", "quantize"]
    assert len(list((folder / "out/store/statistics").iterdir())) == 1


def test_a_budget_is_judged_again(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder = copy_of(finished)
    before = small.stages(folder / "out")
    result = rerun(small, folder, max_drop=0.5)
    assert done(before, small.stages(folder / "out")) == ["bench", "budget"]  # rows say which are within
    assert result.record["verdict"]["max_drop"] == 0.5


def test_a_damaged_artifact_is_made_again_and_told(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder, said = copy_of(finished), Said()
    before = small.stages(folder / "out")
    bundle = small.contents(folder / "out/bundle")
    (key,) = [key for key, record in before.items() if record["stage"] == "quantize"]
    (folder / "out/store/objects" / before[key]["digest"] / "model.pt").write_bytes(b"damaged")
    result = compress.run(folder / "recipe.yaml", progress=said)
    assert result.done == 1
    assert [sentence.split(":")[0] for sentence in said.sentences] == [
        f"the artifact of stage 'quantize' ({key[:12]}) was damaged ('model.pt' is missing, added or changed)"]
    after = small.stages(folder / "out")
    assert after[key]["digest"] == before[key]["digest"]
    assert small.contents(folder / "out/bundle") == bundle


def test_the_factory_is_part_of_what_a_model_is_loaded_from(
    finished: Path, small: ModuleType, copy_of: Copy
) -> None:
    folder = copy_of(finished)
    before = small.stages(folder / "out")
    rerun(small, folder, factory=None, stages=["quantize"], target="openvino-cpu")
    assert done(before, small.stages(folder / "out")) == ["budget", "load", "quantize"]


# --- recipes with stages left out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "built"),
    [
        (["quantize", "export"], [("original", "fp32"), ("original", "bf16"), ("shipped", "int8")]),
        (["prune", "export"], [("original", "fp32"), ("original", "bf16"), ("control", "bf16"), ("shipped", "fp32")]),
        (["export"], [("original", "fp32"), ("original", "bf16"), ("shipped", "fp32")]),
    ],
)
def test_stages_left_out(
    finished: Path, small: ModuleType, copy_of: Copy, names: list[str], built: list[tuple[str, str]]
) -> None:
    folder = copy_of(finished)
    stages = [stage for stage in small.STAGES if next(iter(stage)) in names]
    result = rerun(small, folder, stages=stages, target="openvino-cpu", factory=small.FACTORY)
    within = ["budget"] if "quantize" in names else []
    assert [stage["stage"] for stage in result.record["stages"]] == [*names[:1], *within, *names[1:], "parity"]
    assert result.bundle is not None
    controls = json.loads((folder / "out/controls/controls.json").read_text())["controls"]
    found = [(entry["role"], entry["name"].split(",")[0].split()[1]) for entry in controls]
    assert [*found, built[-1]] == built
    assert "bench" not in result.record
    assert "verdict" not in result.record
    manifest = json.loads((folder / "out/bundle/manifest.json").read_text())
    (graph,) = manifest["graphs"].values()
    assert {name: engine["precision"] for name, engine in graph["engines"].items()} == {"openvino-cpu": built[-1][1]}
    assert manifest["accuracy"]["targets"] == {}


def test_without_export_there_is_a_report_and_no_bundle(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder = copy_of(finished)
    (folder / "out/report.json").unlink()
    result = rerun(small, folder, stages=small.STAGES[:2])
    assert (result.bundle, result.done) == (None, 0)
    assert [stage["stage"] for stage in result.record["stages"]] == ["prune", "distill"]
    assert (folder / "out/report.json").is_file()


def test_comparisons_of_ones_own(
    finished: Path, small: ModuleType, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(finished)
    (folder / "rows_of_mine.py").write_text(
        "def rows(model, recipe, progress):\n"
        "    return [{'name': model.name, 'accuracy': 0.25, 'note': recipe.metric}]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    result = rerun(small, folder, stages=["prune"], comparisons="rows_of_mine:rows")
    assert result.record["baselines"] == [{"name": "tiny", "accuracy": 0.25, "note": "accuracy"}]


# --- models in other forms --------------------------------------------------------------------------------------------

SCRIPT = """
import small_recipe
def get_model(): return small_recipe.trained()
def get_args(): return small_recipe.samples(2, 9)[0]
"""


def test_a_model_script(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder = copy_of(finished)
    (folder / "mine.py").write_text(SCRIPT)
    result = rerun(small, folder, model="mine.py", stages=["quantize"], target="openvino-cpu")
    assert result.record["name"] == "mine"
    assert result.record["stages"][0]["summary"]["int8"] > 0


def test_a_program_of_torch_export(finished: Path, small: ModuleType, copy_of: Copy) -> None:
    folder = copy_of(finished)
    feed = {name: torch.from_numpy(array) for name, array in small.samples(2, 9)[0].items()}
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        small.trained().eval(), (), feed, dynamic_shapes={name: {0: batch} for name in feed})
    torch.export.save(program, folder / "mine.pt2")
    result = rerun(small, folder, model="mine.pt2", stages=["quantize"], target="openvino-cpu")
    assert result.record["stages"][0]["summary"]["int8"] > 0


# --- targets that cannot be built -------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_built_is_told_and_the_run_goes_on(
    finished: Path, small: ModuleType, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> None:
        raise CompressError("TensorRT for RTX is not available here: no network")

    monkeypatch.setattr(import_module("compress.export.tensorrt"), "ensure_rtx_libraries", unavailable)
    folder, said = copy_of(finished), Said()
    result = rerun(small, folder, said, target=["openvino-cpu", "rtx"], stages=[{"quantize": {}}, {"export": {}}])
    (export,) = [stage for stage in result.record["stages"] if stage["stage"] == "export"]
    reason = "TensorRT for RTX is not available here: no network"
    assert export["summary"]["not_built"] == [{"target": "rtx", "precision": "int8", "reason": reason}]
    assert said.sentences == [f"shipped int8, rtx was not built: {reason}"]
    assert {entry["target"] for entry in export["summary"]["built"]} == {"openvino-cpu"}
    assert runtimes.read_bundle(folder / "out/bundle").graphs["forward"].engines.keys() == {"openvino-cpu"}
    with pytest.raises(CompressError, match="no engine could be built: rtx: TensorRT for RTX is not available here"):
        rerun(small, folder, said, target="rtx", stages=[{"quantize": {}}, {"export": {}}])


def test_a_full_disk_is_not_a_target_that_cannot_be_built(
    finished: Path, small: ModuleType, copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = copy_of(finished)
    monkeypatch.setattr(import_module("compress.export"), "build_engine", full)
    engine = next(path for path, record in small.stages(folder / "out").items() if record["stage"] == "engine")
    (folder / "out/store/stages" / f"{engine}.json").unlink()
    with pytest.raises(DiskFullError, match=r"cannot keep what stage 'engine' makes in .*: no space left on the disk"):
        compress.run(folder / "recipe.yaml")
    assert list((folder / "out/store/tmp").iterdir()) == []


def test_widths_suit_the_kernels_of_all_targets(small_files: Path, small: ModuleType) -> None:
    first = get_target("openvino-cpu")
    targets = [dataclasses.replace(first, multiple=multiple) for multiple in (16, 8, 24)]

    def rounded(**settings: Any) -> Rounding:
        recipe = read_recipe(small.write_recipe(small_files, "round.yaml", stages=[{"prune": settings}, "quantize"]))
        found: Rounding = _suited(recipe, targets, Progress(quiet=True)).stages[0].config.rounding
        return found

    assert rounded() == Rounding(multiple=48, exact=False)
    assert rounded(round_near=12) == Rounding(multiple=12, exact=False)
    assert rounded(round_to=4) == Rounding(multiple=4)
    assert rounded(target="rpi5") == Rounding(multiple=get_target("rpi5").multiple, exact=False)


class Heard(Progress):
    """Progress whose sentences are kept."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def suited(small: ModuleType, files: Path, targets: list[str], heard: Progress, **settings: Any) -> Any:
    """The settings of the prune stage of a recipe for these targets."""
    speedup = settings.pop("of_all", None)
    stages = [{"prune": settings}, "quantize"]
    recipe = read_recipe(small.write_recipe(files, "suited.yaml", stages=stages, target=targets, speedup=speedup))
    return _suited(recipe, [get_target(name) for name in targets], heard).stages[0].config


def test_a_goal_in_latency_is_measured_on_the_first_target_that_can_be(small_files: Path, small: ModuleType) -> None:
    heard = Heard()
    config = suited(small, small_files, ["rtx", "onnxruntime-cpu", "openvino-cpu"], heard, speedup=2)
    assert config.target == "onnxruntime-cpu"
    assert heard.said == ["prune: its goal in latency is measured on onnxruntime-cpu alone, the first of the targets "
                          "that can be timed from here; give the prune stage a target for another"]
    config = suited(small, small_files, ["rtx", "onnxruntime-cpu"], heard, speedup=2, target="openvino-cpu")
    assert config.target == "openvino-cpu"
    assert suited(small, small_files, ["openvino-cpu"], heard, max_latency_ms=2).target == "openvino-cpu"
    assert suited(small, small_files, ["rtx", "onnxruntime-cpu"], heard, macs=0.5).target is None
    assert len(heard.said) == 1
    with pytest.raises(CompressError, match=r"none of the targets can be timed from here \(rtx: its engines are"):
        suited(small, small_files, ["rtx"], heard, speedup=2)


def test_sparse_weights_are_for_targets_that_have_kernels_for_them(small_files: Path, small: ModuleType) -> None:
    heard = Heard()
    assert suited(small, small_files, ["rtx", "jetson-thor"], heard, sparsity="2:4").sparsity == "2:4"
    assert heard.said == []
    suited(small, small_files, ["rtx", "openvino-cpu"], heard, sparsity="2:4")
    assert heard.said == ["prune: sparsity gains nothing on all targets: 'openvino-cpu' runs on openvino, whose "
                          "engines get the same weights"]
    with pytest.raises(CompressError, match=r"suited.yaml: prune: sparsity is of use on TensorRT alone, and "
                                            "'openvino-cpu' runs on openvino, 'rpi5' runs on onnxruntime: it would"):
        suited(small, small_files, ["openvino-cpu", "rpi5"], heard, sparsity="2:4")
    for goal in ({"speedup": 2}, {"of_all": 2}):
        with pytest.raises(CompressError, match="and the goal in latency would be measured on 'openvino-cpu': give a"):
            suited(small, small_files, ["rtx", "openvino-cpu"], heard, sparsity="2:4", **goal)


# --- refused before any work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ["openvino-cpu", "openvino-gpq"]}, "unknown target 'openvino-gpq': did you mean openvino-"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"metric": "no_such_module:score"}, "metric 'no_such_module:score' cannot be imported"),
        ({"max_dorp": 1}, "unknown key 'max_dorp'"),
    ],
)
def test_refused_before_any_work(
    small_files: Path, small: ModuleType, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompressError, match=message):
        compress.run(small.write_recipe(small_files, "bad.yaml", **changes), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("metric", "message"), [
    ("accuracy/words", "metric 'accuracy/words' is of an output that is not there: the outputs are"),
    ("bleu", "metric 'bleu' compares texts, and the model's processing makes none"),
    ("mse", r"data set 'validation', .*'mse' failed on 1 samples: the output has shape \(1, 3\) and the targets"),
])
def test_a_metric_of_other_outputs_is_refused_before_any_stage(
    small_files: Path, small: ModuleType, tmp_path: Path, metric: str, message: str,
) -> None:
    with pytest.raises(CompressError, match=message):
        compress.run(small.write_recipe(small_files, "bad.yaml", metric=metric), output=tmp_path / "out")
    assert [record["stage"] for record in small.stages(tmp_path / "out").values()] == ["load"]


@pytest.mark.slow
def test_refused_in_several_processes(small_files: Path, small: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "compress",
               "run", str(small_files / "recipe.yaml"), "--output", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(command, env=small.ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    told = "a recipe runs in one process, and torchrun started 2: run it without torchrun, or distil alone in several"
    assert told in done.stderr      # once or twice: torchrun ends the others as soon as one has ended
    assert "pipeline.py" not in done.stderr     # in one line: the traceback is torchrun's own
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(small_files: Path, small: ModuleType, tmp_path: Path) -> None:
    recipe = small.write_recipe(small_files, "bad.yaml", model="none.pt")
    with pytest.raises(CompressError, match=r"bad\.yaml: model .*none\.pt does not exist"):
        compress.run(recipe, output=tmp_path / "out")
    recipe = small.write_recipe(small_files, "bad.yaml", model="train")
    with pytest.raises(CompressError, match=r"train is a folder: name the model file \(a Hugging Face folder"):
        compress.run(recipe, output=tmp_path / "out")


def test_every_set_is_checked_before_the_first_stage(
    small_files: Path, small: ModuleType, tmp_path: Path
) -> None:
    data = {"calibration": "calibration", "validation": "validation", "train": "none"}
    recipe = small.write_recipe(small_files, "bad.yaml", data=data)
    with pytest.raises(CalibrationError, match="none"):
        compress.run(recipe, output=tmp_path / "out")
    assert [record["stage"] for record in small.stages(tmp_path / "out").values()] == ["load"]
