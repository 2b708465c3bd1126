from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.bench import BenchConfig
from compress.distill.config import DistillStage
from compress.errors import CompressError
from compress.prune.config import PruneStage
from compress.quantize import QuantizeConfig
from compress.recipe import Budget, ExportConfig, Recipe, read_recipe

GOOD: dict[str, Any] = {
    "version": 1, "model": "model.pt", "data": {"calibration": "c/", "train": "t/", "validation": "v/"},
    "target": "openvino-cpu", "stages": [{"quantize": {}}, {"export": {}}],
}  # fmt: skip


def read(folder: Path, **changes: Any) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**GOOD, **changes}.items() if value is not None}))
    return read_recipe(path)


def test_the_readmes_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("""
version: 1
model: model.pt
data: {calibration: calibration/, train: train/, validation: validation/}
metric: accuracy
max_drop: 0.02
target: [openvino-cpu, onnxruntime-cpu, rtx, openvino-cpu]
stages:
  - prune: {macs: 0.4, protect: [head]}
  - distill: {epochs: 4}
  - quantize: {ranges: minmax}
  - distill: {epochs: 1, learning_rate: 1}
  - export
  - bench:
""")
    recipe = read_recipe(path)
    assert [(stage.name, stage.config) for stage in recipe.stages] == [
        ("prune", PruneStage(macs=0.4, protect=("head",))), ("distill", DistillStage(epochs=4)),
        ("quantize", QuantizeConfig(ranges="minmax")), ("distill", DistillStage(epochs=1, learning_rate=1.0)),
        ("export", ExportConfig()), ("bench", BenchConfig()),
    ]  # fmt: skip
    assert recipe.targets == ("openvino-cpu", "onnxruntime-cpu", "rtx")  # each once
    assert (recipe.metric, recipe.max_drop) == ("accuracy", 0.02)
    assert recipe.has("bench")
    assert not read(tmp_path).has("bench")


@pytest.mark.parametrize(("written", "rate"), [("1e-3", 0.001), ("5.E-4", 0.0005), ("+2e0", 2.0), ("1.0e-3", 0.001)])
def test_numbers_with_an_exponent_need_no_point(tmp_path: Path, written: str, rate: float) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "stages": ["STAGE", "export"]}).replace(
        "STAGE", f"distill: {{learning_rate: {written}}}"))
    assert read_recipe(path).stages[0].config == DistillStage(learning_rate=rate)


def test_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert (recipe.metric, recipe.max_drop, recipe.factory, recipe.comparisons) == ("accuracy", 0.01, None, None)
    assert recipe.targets == ("openvino-cpu",)


def test_the_budget(tmp_path: Path) -> None:
    stages = ["prune", "distill", "quantize", {"distill": {"epochs": 1}}, "export"]
    recipe = read(tmp_path, max_drop=0, speedup=3, rounds=2, stages=stages)
    assert recipe.budget == Budget(max_drop=0.0, speedup=3.0, rounds=2)
    assert [stage.name for stage in recipe.on_float] == ["prune", "distill"]
    assert [(stage.name, getattr(stage.config, "epochs", None)) for stage in recipe.on_int8] == [
        ("quantize", None), ("distill", 1)]  # fmt: skip
    assert read(tmp_path).budget == Budget()
    assert [stage.name for stage in read(tmp_path, stages=["prune", "export"]).on_float] == ["prune"]
    assert read(tmp_path, stages=["prune", "export"]).on_int8 == ()


def test_what_stands_in_place_of_its_keys(tmp_path: Path) -> None:
    read(tmp_path, max_drop=0.5, stages=["prune"])
    recipe = read_recipe(tmp_path / "recipe.yaml", {"speedup": "most", "max_drop": 0.02})
    assert recipe.budget == Budget(max_drop=0.02, speedup="most")
    assert recipe.raw["max_drop"] == 0.02
    with pytest.raises(CompressError, match="unknown key 'speed_up': did you mean 'speedup'"):
        read_recipe(tmp_path / "recipe.yaml", {"speed_up": 2})


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    elsewhere = tmp_path / "elsewhere" / "train"
    read(tmp_path / "sub", model="../model.pt", data={"calibration": "c", "validation": "v", "train": str(elsewhere)})
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(Path("sub/recipe.yaml"))
    assert recipe.path == tmp_path / "sub/recipe.yaml"
    assert recipe.model.resolve() == tmp_path / "model.pt"
    assert (recipe.calibration, recipe.validation, recipe.train) == (
        tmp_path / "sub/c", tmp_path / "sub/v", elsewhere)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_dorp": 0.1}, "unknown key 'max_dorp': did you mean 'max_drop'?"),
        ({"zzz": 1}, "unknown key 'zzz': expected one of comparisons, data"),
        ({"version": None}, "lacks 'version'"),
        ({"model": None}, "lacks 'model'"),
        ({"data": None}, "lacks 'data'"),
        ({"target": None}, "lacks 'target'"),
        ({"stages": None}, "lacks 'stages'"),
        ({"version": 2}, "has version 2, this release reads version 1"),
        ({"version": True}, "has version True, this release reads version 1"),
        ({"data": "c/"}, "data must be a mapping of names to values, got 'c/'"),
        ({"data": {"calibration": "c/", "vaildation": "v/"}},
         "data: unknown key 'vaildation': did you mean 'validation'?"),
        ({"data": {"calibration": "c/"}}, "data lacks 'validation'"),
        ({"data": {"validation": "v/"}}, "data lacks 'calibration'"),
        ({"data": {"calibration": 3, "validation": "v/"}}, "data: calibration must be a folder's name, got 3"),
        ({"data": {"calibration": "c/", "validation": "v/"}, "stages": ["distill"]},
         "a distill stage needs data: train"),
        ({"target": []}, "target must be a target's name or a list of names, got []"),
        ({"target": ["rtx", 5]}, "target must be a target's name or a list of names, got ['rtx', 5]"),
        ({"max_drop": "a lot"}, "max_drop must be a number of at least 0, got 'a lot'"),
        ({"max_drop": -0.1}, "max_drop must be a number of at least 0, got -0.1"),
        ({"max_drop": True}, "max_drop must be a number of at least 0, got True"),
        ({"max_drop": float("nan")}, "max_drop must be a number of at least 0, got nan"),
        ({"max_drop": float("inf")}, "max_drop must be a number of at least 0, got inf"),
        ({"speedup": "fast"}, "speedup must be a number above 1, or most, got 'fast'"),
        ({"speedup": True}, "speedup must be a number above 1, or most, got True"),
        ({"speedup": 1, "stages": ["prune"]}, "speedup must be above 1, or 'most', got 1"),
        ({"speedup": 2}, "speedup is what pruning is driven by: give the recipe a prune stage"),
        ({"speedup": "most", "stages": [{"prune": {"macs": 0.5, "params": 0.5}}]},
         "speedup says how much is pruned: leave macs and params out of the prune stage"),
        ({"speedup": "most", "stages": [{"prune": {"merge_tokens": 4}}]},
         "speedup prunes in rounds, and a model whose tokens are merged is not pruned again: leave merge_tokens out"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"rounds": "many"}, "rounds must be a number, got 'many'"),
        ({"rounds": 1.5}, "Expected `int`, got `float`"),
        ({"model": 5}, "model must be a string, got 5"),
        ({"metric": ["a"]}, "metric must be a string, got ['a']"),
        ({"factory": 1}, "factory must be a string, got 1"),
        ({"comparisons": 1}, "comparisons must be a string, got 1"),
        ({"stages": []}, "stages must be a list such as [prune"),
        ({"stages": {"prune": {}}}, "stages must be a list such as [prune"),
        ({"stages": [{"prune": {}, "quantize": {}}]}, "stage 1 must be one name with its settings"),
        ({"stages": [5]}, "stage 1 must be one name with its settings, got 5"),
        ({"stages": ["export", "shrink"]},
         "stage 2 is 'shrink': expected one of prune, distill, quantize, sensitivity, budget, export, bench"),
        ({"stages": ["shink"]}, "stage 1 is 'shink'"),
        ({"stages": [{"prune": [1]}]}, "stage 1 (prune) must be a mapping of names to values, got [1]"),
        ({"stages": [{"prune": False}]}, "stage 1 (prune) must be a mapping of names to values, got False"),
        ({"stages": [{"prune": {"mac": 0.5}}]}, "stage 1 (prune): unknown key 'mac': did you mean 'macs'?"),
        ({"stages": [{"export": {"fast": 1}}]}, "stage 1 (export): unknown key 'fast': there is nothing to set"),
        ({"stages": [{"prune": {"macs": "half"}}]}, "stage 1 (prune): Expected `float | null`, got `str` - at `macs`"),
        ({"stages": ["export", {"bench": {"duration_s": float("inf")}}]},
         "(bench): duration_s is inf: it must be a finite"),
        ({"stages": [{"prune": {"protect": "head"}}]}, "stage 1 (prune): Expected `array`, got `str` - at `protect`"),
        ({"stages": [{"prune": {"macs": 2}}]}, "stage 1 (prune): prune: macs=2.0 is the share of MACs to keep"),
        ({"stages": [{"quantize": {"ranges": "kl"}}]}, "stage 1 (quantize): Invalid enum value 'kl' - at `ranges`"),
        ({"stages": [{"quantize": {"percentile": 0.5}}]},
         "stage 1 (quantize): percentile is 0.5: it must be in (50, 100]"),
        ({"stages": ["export", {"bench": {"max_drop": 0.1}}]},
         "stage 2 (bench): max_drop is a key of the recipe itself"),
        ({"stages": ["quantize", {"budget": {"max_drop": 0.02}}, "export"]},
         "stage 2 (budget): max_drop is a key of the recipe itself"),
        ({"stages": ["budget", "export"]}, "budget looks at a quantized model: put a quantize stage before it"),
        ({"stages": ["quantize", "budget", "sensitivity"]}, "got ['quantize', 'budget', 'sensitivity']"),
        ({"stages": ["quantize", "budget", "distill"]}, "distill cannot come after budget"),
        ({"stages": ["quantize", "prune"]}, "come in this order, each at most once; got ['quantize', 'prune']"),
        ({"stages": ["prune", "prune"]}, "come in this order, each at most once; got ['prune', 'prune']"),
        ({"stages": ["bench", "export"]}, "come in this order, each at most once; got ['bench', 'export']"),
        ({"stages": ["export", "distill"]}, "distill cannot come after export"),
        ({"stages": ["export", "bench", "distill"]}, "distill cannot come after export"),
        ({"stages": ["quantize", "bench"]}, "bench measures engines: put an export stage before it"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=re.escape(message)) as caught:
        read(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{version: 1", "is not YAML: while parsing a flow mapping"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- 1\n", "is not a recipe: expected a mapping"),
        (b"", "is not a recipe: expected a mapping"),
        (b"!!python/object/apply:os.system ['touch ran']", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe(
    tmp_path: Path, text: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(CompressError, match=f"^{re.escape(str(path))} {re.escape(message)}") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"recipe .*none\.yaml does not exist"):
        read_recipe(tmp_path / "none.yaml")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nmodel: a.pt\nmodel: b.pt\n")
    with pytest.raises(CompressError, match="key 'model' stands twice"):
        read_recipe(recipe)


def test_brackets_without_end_are_no_yaml(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("[" * 5000)
    with pytest.raises(CompressError, match="is not YAML"):
        read_recipe(recipe)
