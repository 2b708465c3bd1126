"""A recipe whose model is a Hugging Face folder, pruned with no factory: its module is the library's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import calibration
import compress
import runtimes
from compress.program import model_runner
from tests.compress.huggingface.folders import vit


@pytest.mark.slow
def test_a_hugging_face_folder(tmp_path: Path, small: ModuleType) -> None:
    folder = vit(tmp_path / "vit", num_hidden_layers=1)
    pixels = np.random.default_rng(0).normal(size=(12, 3, 32, 32)).astype(np.float32)
    (logits,) = model_runner(compress.load(folder))({"pixel_values": pixels}).values()
    for name in ("calibration", "validation"):
        calibration.write(tmp_path / name, {"pixel_values": pixels}, target=logits.argmax(-1))
    recipe = {"version": 1, "model": "vit", "target": "onnxruntime-cpu",
              "data": {"calibration": "calibration/", "validation": "validation/"},
              "stages": [{"prune": {"macs": 0.8, "samples": 12}}, {"quantize": {"samples": 12}}, "export"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = compress.run(tmp_path / "recipe.yaml")
    assert result.record["name"] == "vit"
    pruned = result.record["stages"][0]["summary"]
    assert pruned["macs_after"] <= 0.8 * pruned["macs_before"]
    with runtimes.load(tmp_path / "out/bundle", self_test=True) as session:
        assert session.precision == "int8"
        assert session.ask({"image": np.zeros((40, 50, 3), np.uint8)})["logits"]["label"] in ("cat", "dog", "fish")
    (folder / "model.safetensors").touch()      # its bytes count, not when they were written
    assert compress.run(tmp_path / "recipe.yaml").done == 0
    (folder / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text() + "\n")
    again = compress.run(tmp_path / "recipe.yaml")
    assert (again.done, small.contents(again.output / "bundle")) == (1, small.contents(tmp_path / "out/bundle"))
