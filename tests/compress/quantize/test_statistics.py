"""A pass that was killed goes on to the same ranges; one that is done is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import calibration
from calibration import CalibrationSet, open_set
from compress.model import Model, Quantization
from compress.modelfile import read_model, write_model
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.collect import Collector
from compress.weights import with_weights
from tests.compress import captioner
from tests.compress.quantize.networks import Everything, TwoReaders, make, samples

ROOT = Path(__file__).parents[3]
DEFAULT = QuantizeConfig()
SCRIPT = """
import sys, torch
from pathlib import Path
from calibration import open_set
from compress.modelfile import read_model
from compress.quantize import quantize, statistics

torch.set_num_threads(1)
statistics.CHECKPOINT_SECONDS = 0.0
folder = Path(sys.argv[1])
model = read_model(folder / "model.pt")
quantize(model, open_set(folder / "data", model.inputs), scheme="x86-vnni", statistics=folder / "kept",
         progress=lambda done, total: print(done, flush=True))
"""


def ranges(
    model: Model, data: CalibrationSet, keep: Path | None, config: QuantizeConfig = DEFAULT
) -> tuple[Quantization, list[int]]:
    """What is chosen, and how many samples had been run each time that was told."""
    told: list[int] = []
    found = quantize(model, data, scheme="x86-vnni", config=config, statistics=keep,
                     progress=lambda done, total: told.append(done)).model.quantization  # fmt: skip
    assert found is not None
    return found, told


def runs(model: Model, data: CalibrationSet, keep: Path, config: QuantizeConfig = DEFAULT) -> int:
    """How many feeds the programs are given."""
    with mock.patch.object(Collector, "__call__", autospec=True, side_effect=Collector.__call__) as called:
        quantize(model, data, scheme="x86-vnni", config=config, statistics=keep)
    return called.call_count


def kill_after(folder: Path, count: int) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True,
                               env=environment)  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if int(line) >= count:
                process.kill()
                break
    return process.wait()


@pytest.mark.slow
def test_a_killed_pass_goes_on_to_the_same_ranges(tmp_path: Path) -> None:
    model = make(Everything)
    write_model(model, tmp_path / "model.pt")
    rng = np.random.default_rng(3)
    calibration.write(tmp_path / "data", {"image": rng.normal(size=(290, 1, 4, 4)).astype(np.float32)})
    model = read_model(tmp_path / "model.pt")
    data = open_set(tmp_path / "data", model.inputs)
    expected, _ = ranges(model, data, None)
    assert kill_after(tmp_path, 96) < 0
    found, told = ranges(model, data, tmp_path / "kept")
    assert 96 < told[0] <= 290      # three batches of 32 were done at least
    assert found == expected
    again, told = ranges(model, data, tmp_path / "kept")
    assert (again, told) == (expected, [290])


def test_a_pass_that_fails_in_the_middle_goes_on(tmp_path: Path) -> None:
    model = make(TwoReaders)
    data = samples(model, 200)
    expected, _ = ranges(model, data, None)

    def stop(done: int, total: int) -> None:
        if done == 96:
            raise KeyboardInterrupt

    with mock.patch("compress.quantize.statistics.CHECKPOINT_SECONDS", 0.0), pytest.raises(KeyboardInterrupt):
        quantize(model, data, scheme="x86-vnni", statistics=tmp_path, progress=stop)
    found, told = ranges(model, data, tmp_path)
    assert (found, told) == (expected, [128, 160, 192, 200])


def test_other_ranges_need_no_other_pass(tmp_path: Path) -> None:
    model = make(TwoReaders)
    data = samples(model, 70)
    assert runs(model, data, tmp_path) == 3
    for method in ("minmax", "percentile", "mse", "entropy"):
        config = QuantizeConfig(ranges=method)  # type: ignore[arg-type]
        assert runs(model, data, tmp_path, config) == 0
        assert ranges(model, data, tmp_path, config)[0] == ranges(model, data, None, config)[0]
    assert runs(model, data, tmp_path, QuantizeConfig(keep_float=("head",))) == 0      # what it needs is there


def test_another_model_set_or_number_of_samples_does(tmp_path: Path) -> None:
    model = make(TwoReaders)
    data = samples(model, 70)
    assert runs(model, data, tmp_path) == 3
    assert runs(model, samples(model, 70, seed=1), tmp_path) == 3
    assert runs(model, data, tmp_path, QuantizeConfig(samples=20)) == 1
    weights = {name: value.clone() for name, value in model.weights.items()}
    weights["head.bias"] += 1
    assert runs(with_weights(model, weights), data, tmp_path) == 3
    assert len(list(tmp_path.iterdir())) == 4


def test_a_layer_that_was_in_float_does(tmp_path: Path) -> None:
    model = make(TwoReaders)
    data = samples(model, 70)
    assert runs(model, data, tmp_path, QuantizeConfig(keep_float=("head",))) == 3
    assert runs(model, data, tmp_path) == 3
    assert ranges(model, data, tmp_path)[0] == ranges(model, data, None)[0]


@pytest.mark.parametrize("damage", ["cut", "digest", "version", "tensor", "text"])
def test_a_damaged_file_costs_a_pass_alone(damage: str, tmp_path: Path) -> None:
    model = make(TwoReaders)
    data = samples(model, 40)
    expected, _ = ranges(model, data, tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    if damage == "digest":
        record["content"]["done"] = {"forward": 12}
    elif damage == "version":
        record["version"] = 2
    elif damage == "tensor":
        record["content"]["tensors"]["forward"]["x"] = {}
    path.write_text({"cut": json.dumps(record)[:300], "text": "[]"}.get(damage, json.dumps(record)))
    assert runs(model, data, tmp_path) == 2
    assert ranges(model, data, tmp_path)[0] == expected


def test_a_chain_goes_on_too(tmp_path: Path) -> None:
    model = captioner.model(captioner.network())
    data = open_set([{"image": captioner.pictures(5)}], model.inputs, name="pictures")
    with mock.patch("compress.quantize.collect.BATCH", 2):
        expected, told = ranges(model, data, None)
        assert told == [2, 4, 5]

        def stop(done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with mock.patch("compress.quantize.statistics.CHECKPOINT_SECONDS", 0.0), pytest.raises(KeyboardInterrupt):
            quantize(model, data, scheme="x86-vnni", statistics=tmp_path, progress=stop)
        found, told = ranges(model, data, tmp_path)
    assert (found, told) == (expected, [4, 5])
