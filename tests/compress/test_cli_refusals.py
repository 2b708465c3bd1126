"""What the commands refuse, in one line each."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import calibration
from compress.modelfile import read_model, write_model
from tests.compress.command import refused, told


def test_a_wrong_flag_is_one_line(finished: Path) -> None:
    model, data = finished / "model.pt", ("--data", finished / "calibration")
    assert refused("prune", model, *data, "--macs", "2") == (
        "compress: prune: macs=2.0 is the share of MACs to keep: give a number in (0, 1]")
    quantize = ("quantize", model, "--calibration", finished / "calibration")
    assert refused(*quantize, "--percentile", "0.5") == "compress: percentile is 0.5: it must be in (50, 100]"
    assert refused(*quantize, "--ranges", "best").startswith("compress: Invalid value for '--ranges': 'best' is not")
    assert refused("prune", model) == "compress: Missing option '--data'. See: cli prune --help"
    bench = ("bench", finished / "out/bundle")
    assert refused(*bench, "--restarts", "0") == "compress: restarts must be at least 1, got 0"
    line = refused("prune", model, *data, "--mac", "2")
    assert line.startswith("compress: No such option")
    assert line.endswith("See: cli prune --help")
    assert refused("shrink", model).startswith("compress: No such command 'shrink'")


@pytest.mark.parametrize("verb", ["inspect", "export", "quantize", "prune", "parity", "eval", "bundle create"])
def test_a_missing_model(verb: str, finished: Path, tmp_path: Path) -> None:
    extra = {"quantize": ("--calibration", finished / "calibration"), "inspect": (), "export": ()}
    line = refused(*verb.split(), tmp_path / "none.pt", *extra.get(verb, ("--data", finished / "validation")))
    assert line == f"compress: model file {tmp_path}/none.pt does not exist"
    assert list(tmp_path.iterdir()) == []


def test_other_missing_files(finished: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert refused("run", none) == f"compress: recipe {none} does not exist"
    recipe = finished / "recipe.yaml"
    assert refused("run", recipe, "--speedup", "fast") == (
        f"compress: {recipe}: speedup must be a number above 1, or most, got 'fast'")
    assert refused("run", recipe, "--speedup", 3, "--max-drop", 0.02) == (
        f"compress: {recipe}: speedup says how much is pruned: leave macs out of the prune stage")
    assert refused("run", recipe, "--rounds", 0) == f"compress: {recipe}: rounds must be at least 1, got 0"
    for line in (
        refused("quantize", finished / "model.pt", "--calibration", none), refused("report", none),
        refused("bench", none), refused("inspect", finished / "model.pt", "--example", none),
        refused("bench", finished / "out/bundle", "--controls", none, "--target", "openvino-cpu"),
        refused("distill", finished / "model.pt", "--teacher", none, "--data", finished / "train"),
    ):  # fmt: skip
        assert str(none) in line
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_model(finished: Path, tmp_path: Path) -> None:
    good = (finished / "model.pt").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    cases = {
        "text.txt": (b"hello", "is not a model: expected a .pt of compress.save, a .pt2 or a .py with get_model()"),
        "model.onnx": (good, "is not an ONNX model ("),
        "cut.pt": (good[: len(good) // 2], "is damaged or not a model file"),
        "flipped.pt": (bytes(flipped), "is damaged"),
        "empty.pt": (b"", "is damaged or not a model file"),
        "other.pt": (other.getvalue(), "is a zip archive, but not of a model"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        line = refused("inspect", tmp_path / name)
        assert line.startswith(f"compress: {tmp_path / name} {message}")
    assert "is a folder" in refused("inspect", tmp_path)


class Opens:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickled_module_is_not_unpickled(tmp_path: Path, small: ModuleType) -> None:
    torch.save(small.trained(), tmp_path / "pickled.pt")
    line = refused("inspect", tmp_path / "pickled.pt")
    assert "is a pickled module: loading it would run code from the file" in line
    assert line.endswith("pass --trust-pickle")
    torch.save(Opens(tmp_path / "ran"), tmp_path / "hostile.pt")
    assert "--trust-pickle" in refused("inspect", tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    refused("inspect", tmp_path / "plain.pt", "--trust-pickle")
    assert not (tmp_path / "ran").exists()


def test_a_trusted_pickle_and_a_state_dict(tmp_path: Path, small: ModuleType) -> None:
    np.savez(tmp_path / "example.npz", **small.samples(2, 9)[0])
    example = ("--example", tmp_path / "example.npz")
    torch.save(small.trained(), tmp_path / "pickled.pt")
    assert told("inspect", tmp_path / "pickled.pt", "--trust-pickle", *example)["name"] == "pickled"
    torch.save(small.trained().state_dict(), tmp_path / "weights.pt")
    line = refused("inspect", tmp_path / "weights.pt", *example)
    assert line.endswith("is a state dict, weights without a network: name what builds it with --factory")
    factory = ("--factory", "small_recipe:Tiny")
    assert told("inspect", tmp_path / "weights.pt", *factory, *example)["name"] == "weights"
    assert refused("inspect", tmp_path / "weights.pt", *factory).endswith("name a data set with --example")
    (tmp_path / "example.npz").write_bytes(b"PK\x03\x04 cut")
    assert "example.npz is not an .npz file" in refused("inspect", tmp_path / "weights.pt", *factory, *example)


def test_a_factory_is_called_only_when_it_is_named(finished: Path, tmp_path: Path) -> None:
    prune = ("prune", finished / "model.pt", "--data", finished / "calibration", "--output", tmp_path / "p.pt")
    line = refused(*prune)
    assert line.endswith("say so with --factory small_recipe:Tiny (in a recipe: factory: small_recipe:Tiny)")
    assert "factory 'no_such_module:build' cannot be imported" in refused(*prune, "--factory", "no_such_module:build")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite(finished: Path, tmp_path: Path, small: ModuleType) -> None:
    model = read_model(finished / "model.pt")
    with torch.no_grad():
        model.weights["head.0.weight"][0, 0] = float("nan")
    write_model(model, tmp_path / "nan.pt")
    line = refused("export", tmp_path / "nan.pt", "--output", tmp_path / "engine")
    assert "weight 'head.0.weight' has values that are not finite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feed: feed.pop("word"), "'word'"),
        (lambda feed: feed.update(picture=feed["picture"].astype(np.float64)), "'picture'"),
        (lambda feed: feed.update(picture=feed["picture"][:, :5]), "'picture'"),
        (lambda feed: feed["picture"].__setitem__((3, 2), np.nan), "'picture'"),
        (lambda feed: feed["picture"].__setitem__((3, 2), np.inf), "'picture'"),
        (lambda feed: feed.update({name: array[:0] for name, array in feed.items()}), "bad.npz"),
    ],
    ids=["missing", "dtype", "shape", "nan", "infinite", "empty"],
)
def test_a_calibration_set_that_does_not_match(
    finished: Path, tmp_path: Path, small: ModuleType, change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    feed = small.samples(8, 0)[0]
    change(feed)
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set/bad.npz", **feed)
    line = refused("quantize", finished / "model.pt", "--calibration", tmp_path / "set", "--output", tmp_path / "q.pt")
    assert f"{tmp_path}/set/bad.npz" in line
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_calibration_set(finished: Path, tmp_path: Path) -> None:
    line = refused("quantize", finished / "model.pt", "--calibration", tmp_path)
    assert str(tmp_path) in line


def test_a_labelled_set_is_asked_for(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    calibration.write(tmp_path / "plain", small.samples(8, 0)[0])
    assert "target" in refused("eval", finished / "model.pt", "--data", tmp_path / "plain")
    assert "unknown metric 'acuracy': did you mean 'accuracy'" in refused(
        "eval", finished / "model.pt", "--data", finished / "validation", "--metric", "acuracy")


def test_an_unknown_target(finished: Path, tmp_path: Path) -> None:
    data = ("--data", finished / "validation")
    calibrated = ("--calibration", finished / "calibration")
    for line in (
        refused("quantize", finished / "model.pt", *calibrated, "--target", "openvno-cpu"),
        refused("export", finished / "model.pt", "--target", "openvno-cpu"),
        refused("bundle", "create", finished / "model.pt", *data, "--target", "openvno-cpu"),
        refused("parity", finished / "model.pt", *data, "--target", "openvno-cpu"),
        refused("bench", finished / "out/bundle", "--target", "openvno-cpu"),
    ):
        assert line.startswith("compress: unknown target 'openvno-cpu': did you mean openvino-cpu")
    assert "has no engine for target 'rtx': it has those of onnxruntime-cpu, openvino-cpu" in refused(
        "bench", finished / "out/bundle", "--target", "rtx")


def test_stages_on_the_wrong_model(finished: Path, int8: Path, tmp_path: Path) -> None:
    calibration_flags = ("--calibration", finished / "calibration", "--output", tmp_path / "q.pt")
    assert "is quantized already: quantize the float model" in refused("quantize", int8, *calibration_flags)
    assert "is quantized with the scheme" in refused("export", int8, "--target", "rtx", "--output", tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    data = ("--data", finished / "validation", "--target", "onnxruntime-cpu")
    line = refused("bundle", "create", finished / "model.pt", *data, "--output", tmp_path / "mine")
    assert "was not made by compress" in line
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    line = refused("quantize", finished / "model.pt", "--calibration", finished / "calibration",
                   "--output", tmp_path / "file/q.pt")  # fmt: skip
    assert line.startswith(f"compress: cannot write {tmp_path}/file/q.pt")


@pytest.mark.parametrize("verb", ["prune", "distill", "quantize", "budget"])
def test_a_file_that_could_not_be_written_is_refused_before_any_work(
    verb: str, finished: Path, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"compress.{verb}", None)       # would fail
    given = {"prune": (finished / "model.pt", "--data", finished / "calibration", "--factory", "small_recipe:Tiny"),
             "distill": (finished / "model.pt", "--data", finished / "train", "--teacher", finished / "model.pt"),
             "quantize": (finished / "model.pt", "--calibration", finished / "calibration"),
             "budget": (int8, "--validation", finished / "validation")}[verb]  # fmt: skip
    line = refused(verb, *given, "--output", tmp_path / "none/x.pt")
    assert line == (f"compress: cannot write {tmp_path}/none/x.pt: {tmp_path}/none is no folder: make it, or give "
                    "another --output")  # fmt: skip
    assert "it is a folder: give a file as --output" in refused(verb, *given, "--output", tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert f"the folder {tmp_path} is read-only: give another" in refused(verb, *given, "--output", tmp_path / "x.pt")


def test_a_module_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def get_model(): return 5\ndef get_args(): return {}\n")
    assert "get_model() returned int, not an nn.Module" in refused("inspect", tmp_path / "mine.py")
    assert issubclass(nn.Linear, nn.Module)
