"""A recipe whose model is a Hugging Face folder: an encoder and a decoder of the library's, pruned with no factory."""

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
from tests.compress.huggingface.generators import reader


def first_token(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    (tokens,) = outputs.values()
    return np.asarray((tokens[:, 0] == target).astype(np.float64))


def write_recipe(folder: Path, small: ModuleType) -> Path:
    stages = [{"prune": {"macs": 0.95, "samples": 4, "round_to": 2}}, {"quantize": {"samples": 12}}, {"export": {}},
              {"bench": small.BENCH}]
    recipe = {"version": 1, "model": "trocr", "metric": f"{__name__}:first_token", "target": "onnxruntime-cpu",
              "data": {"calibration": "calibration/", "validation": "validation/"}, "stages": stages}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_a_hugging_face_folder(tmp_path: Path, small: ModuleType) -> None:
    """A picture's text, written by a decoder of the library's: the recipe names the folder, and needs no factory."""
    folder = reader(tmp_path / "trocr", "trocr", generation={"eos_token_id": 62, "max_length": 12})
    model = compress.load(folder)
    pixels = np.random.default_rng(0).normal(size=(12, 3, 32, 32)).astype(np.float32)
    (tokens,) = model_runner(model)({"pixel_values": pixels}).values()
    for name in ("calibration", "validation"):
        calibration.write(tmp_path / name, {"pixel_values": pixels}, target=tokens[:, 0])
    result = compress.run(write_recipe(tmp_path, small))
    rows = {row["name"]: row for row in result.record["bench"]["rows"]}
    assert {row["status"] for row in rows.values()} == {"measured"}
    assert rows["original fp32, onnxruntime-cpu"]["accuracy"]["value"] == 1.0
    assert set(rows["shipped int8, onnxruntime-cpu"]["graphs"]) == {"encoder", "decoder"}
    pruned = result.record["stages"][0]["summary"]
    assert pruned["macs_after"] <= 0.95 * pruned["macs_before"]
    with runtimes.load(tmp_path / "out/bundle", self_test=True) as chain:
        (answer,) = chain.run({"pixel_values": pixels[:2]}).values()
    assert answer.shape[0] == 2
    (folder / "model.safetensors").touch()      # its bytes count, not when they were written
    assert compress.run(tmp_path / "recipe.yaml").done == 0
