from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import compress
from calibration import CalibrationError, ConvertConfig, RawInput, open_set
from compress.cli import cli
from compress.data import is_raw, make_data, open_data, wanted_of
from compress.errors import CompressError
from compress.model import Model
from tests.compress import photos


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    photos.write_model(path)
    return path


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return compress.load(model_file)


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_what_a_model_wants(model: Model) -> None:
    wanted = wanted_of(model)
    assert wanted.raw == (RawInput(name="image", kind="image"), RawInput(name="question", kind="text"))
    assert (wanted.inputs, wanted.labels) == (model.inputs, ("no", "yes", "unknown"))
    changed = {"inputs": {**photos.PROCESSING["inputs"], "words": {
        "kind": "features", "from": "counts", "names": ["a", "b", "c", "d", "e"]}}}
    other = wanted_of(model, changed)
    assert other.raw[1] == RawInput(name="counts", kind="features", names=("a", "b", "c", "d", "e"))
    assert other.digest != wanted.digest == wanted_of(model).digest


def test_inputs_that_no_processing_describes_are_arrays(tmp_path: Path) -> None:
    plain = photos.write_model(tmp_path / "model.pt", processing=None)
    assert wanted_of(plain).raw == (RawInput(name="pixels", kind="tensor"), RawInput(name="words", kind="tensor"))
    samples = [{"pixels": np.full((1, 4, 4), i / 4), "words": [1, 2, 3, 4, 5], "label": i} for i in range(3)]
    made = make_data(samples, plain, tmp_path / "set")
    assert made.samples == 3
    opened = open_set(tmp_path / "set", plain.inputs)
    np.testing.assert_array_equal(opened.first(3)["pixels"][:, 0, 0, 0], [0, 0.25, 0.5])
    with pytest.raises(CalibrationError, match=r"captions\.csv, line 2 has no column for the raw input 'pixels'"):
        make_data(photos.write_photos(tmp_path / "photos"), plain, tmp_path / "set")


def test_a_processing_that_does_not_fit(model: Model) -> None:
    with pytest.raises(CompressError, match="processing does not fit the model: processing describes input 'sound'"):
        wanted_of(model, {"inputs": {"sound": {"kind": "tensor", "from": "sound"}}})


def test_raw_samples_and_data_sets_are_told_apart(model: Model, tmp_path: Path) -> None:
    source = photos.write_photos(tmp_path / "photos")
    make_data(source, model, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    assert is_raw(source)
    assert is_raw(source / "captions.csv")
    for path in ("set", "set/0000.npz", "empty", "gone"):
        assert not is_raw(tmp_path / path)
    raw, made = (open_data(tmp_path / name, model) for name in ("photos", "set"))
    assert (raw.digest, raw.name, len(raw)) == (made.digest, "photos", 12)
    assert open_data(source, model, name="mine").name == "mine"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(model_file: Path, model: Model, tmp_path: Path) -> None:
    source = photos.write_photos(tmp_path / "photos")
    code, out, err = call("data", source, "--model", model_file, "-o", tmp_path / "set", "--samples", 6)
    assert (code, out) == (0, f"{tmp_path / 'set'}: 6 samples (captions)\n")
    assert err.startswith("done data ")
    opened = open_set(tmp_path / "set", model.inputs)
    np.testing.assert_array_equal(opened.targets(), np.array([1, 0, 2, 1, 0, 2]))
    grey = np.array([1, 3, 5, 7, 9, 11])        # of each label's four two, one apart: 1 and 7, 3 and 9, 5 and 11
    np.testing.assert_allclose(opened.first(6)["pixels"][:, 0, 0, 0], grey / 255, rtol=1e-6)


def test_the_command_says_what_it_left_out(model_file: Path, tmp_path: Path) -> None:
    source = photos.write_photos(tmp_path / "photos", 14)
    for index in range(12):
        (source / f"{index:03d}.png").write_bytes(b"no picture")
    arguments = ("data", source, "--model", model_file, "-o", tmp_path / "set", "--skip-bad")
    code, out, err = call(*arguments)
    assert (code, out) == (0, f"{tmp_path / 'set'}: 2 samples (captions), 12 left out\n")
    lines = err.splitlines()
    assert lines[1].startswith(f"left out: {source}/captions.csv, line 2 (000.png): raw input 'image' is no JPEG")
    assert (len(lines), lines[-1]) == (12, "and 2 more")
    code, out, err = call(*arguments, "--json", "--quiet")
    record = json.loads(out)
    assert (record["samples"], record["form"], len(record["skipped"]), err) == (2, "captions", 12, "")


def test_the_command_refuses_in_one_line(model_file: Path, tmp_path: Path) -> None:
    source = photos.write_photos(tmp_path / "photos")
    (source / "003.png").unlink()
    code, out, err = call("data", source, "--model", model_file, "-o", tmp_path / "set", "-q")
    assert (code, out) == (2, "")
    assert err == (f"compress: {source}/captions.csv, line 5 (003.png): names the file '003.png', which is not there "
                   "(skip_bad, or --skip-bad, leaves such samples out)\n")
    for name in ("gone", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        code, _, err = call("data", tmp_path / name, "--model", model_file, "-o", tmp_path / "set", "-q")
        assert code == 2
        assert err.startswith(f"compress: {tmp_path / name} ")


def test_a_processing_in_place_of_the_models_own(model: Model, model_file: Path, tmp_path: Path) -> None:
    record = json.loads(json.dumps(photos.PROCESSING))
    record["inputs"]["pixels"]["steps"][1] = {"op": "rescale", "scale": 1.0}
    (tmp_path / "other.json").write_text(json.dumps({"version": 1, **record}))
    source = photos.write_photos(tmp_path / "photos")
    call("data", source, "--model", model_file, "-o", tmp_path / "set", "--processing", tmp_path / "other.json", "-q")
    pixels = open_set(tmp_path / "set", model.inputs).first(12)["pixels"]
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], np.arange(12))


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_of_raw_samples(model_file: Path, tmp_path: Path) -> None:
    shutil.copy(model_file, tmp_path / "model.pt")
    source = photos.write_photos(tmp_path / "photos")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: model.pt\ndata: {calibration: photos/, validation: photos/}\ntarget: openvino-cpu\n"
        "stages: [{quantize: {samples: 8}}]\n")
    first = compress.run(tmp_path / "recipe.yaml")
    assert (first.done, first.reused) == (4, 0)     # load, data once for both, quantize, a look at the budget
    counts = {kind: entry["count"] for kind, entry in first.record["data"].items()}
    assert counts == {"calibration": 12, "validation": 12}
    again = compress.run(tmp_path / "recipe.yaml")
    assert (again.done, again.reused) == (0, 4)
    (source / "000.png").write_bytes(photos.png(99))
    changed = compress.run(tmp_path / "recipe.yaml")
    assert (changed.done, changed.reused) == (3, 1)
    (source / "001.png").unlink()
    with pytest.raises(CalibrationError, match=r"line 3 \(001\.png\): names the file '001\.png', which is not there"):
        compress.run(tmp_path / "recipe.yaml")


def test_an_iterable_that_is_read_once(model: Model, tmp_path: Path) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        for picture, question, label in photos.samples(9):
            yield {"image": picture, "question": question, "label": label}

    assert make_data(samples(), model, tmp_path / "set", ConvertConfig(samples=3)).to_json() == {
        "form": "iterable", "samples": 3, "source": "", "skipped": []}
