"""The checks every builder makes before its backend sees anything."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from compress.errors import CompressError
from compress.export.building import OnnxFile, import_backend, new_folder, read_onnx
from compress.targets import Target, targets
from runtimes.engine import Precision
from runtimes.hashing import file_digest
from runtimes.spec import Dim, TensorSpec
from tests.compress.export import tiny_models as tiny

OPENVINO = targets()["openvino-cpu"]
ORT = targets()["onnxruntime-cpu"]


def _read(
    path: Path,
    precision: Precision = "fp32",
    target: Target = OPENVINO,
    inputs: Sequence[TensorSpec] = tiny.INPUTS,
    outputs: Sequence[TensorSpec] = tiny.OUTPUTS,
) -> OnnxFile:
    return read_onnx(path, target, inputs=inputs, outputs=outputs, precision=precision)


def test_a_checked_file_is_its_bytes(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    source = _read(path)
    assert (source.path, source.read(), source.digest, source.opset) == (path, path.read_bytes(), file_digest(path), 20)
    source.copy_to(tmp_path / "copy.onnx")
    assert file_digest(tmp_path / "copy.onnx") == source.digest
    with source.laid_out(tmp_path) as light:
        assert file_digest(light.parent / "model.onnx") == source.digest
        assert onnx.load(light) == onnx.load(path)
    assert sorted(os.listdir(tmp_path)) == ["copy.onnx", "model.onnx"]


def test_a_file_on_another_disk_is_laid_out_as_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    source = _read(tiny.floating(tmp_path / "model.onnx"))
    with source.laid_out(tmp_path) as light:
        assert (light.parent / "model.onnx").read_bytes() == source.path.read_bytes()


def test_a_file_that_changes_under_a_build_is_refused(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    source, content = _read(path), path.read_bytes()
    changed = r"model.onnx was changed while an engine was built from it: export it again"

    def change_while_laid_out() -> None:
        with source.laid_out(tmp_path):
            path.write_bytes(content + b"x")

    with pytest.raises(CompressError, match=changed):
        change_while_laid_out()
    for use in (source.read, lambda: source.copy_to(tmp_path / "copy.onnx"), change_while_laid_out):
        with pytest.raises(CompressError, match=changed):
            use()
    path.write_bytes(content)
    assert source.read() == content


def test_data_in_another_file_is_refused(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    with pytest.raises(CompressError, match=r"model.onnx: tensor 'w' keeps its data in another file \('weights.bin'\)"):
        _read(path)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"absent.onnx cannot be read \(No such file or directory\)"):
        _read(tmp_path / "absent.onnx")
    path = tiny.floating(tmp_path / "cut.onnx")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CompressError, match=r"cut.onnx is not an ONNX model \(.*\): it is damaged"):
        _read(path)
    path.write_bytes(b"\x3a\x02\x0a\x00")  # well-formed to a protobuf walker; as a node, a field of the wrong type
    with pytest.raises(CompressError, match=r"cut.onnx has the inputs \[\]"):
        _read(path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(CompressError, match=r"empty.onnx has the inputs \[\], the model's are \['x'\]"):
        _read(tmp_path / "empty.onnx")


def test_another_interface_is_refused(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    renamed = dataclasses.replace(tiny.OUTPUTS[0], name="logits")
    with pytest.raises(CompressError, match=r"has the outputs \['y'\], the model's are \['logits'\]"):
        _read(path, outputs=(renamed,))
    with pytest.raises(CompressError, match=r"input 'x' is float32\[\?, 16\], the model's is int64\[batch=1..8, 16\]"):
        _read(path, inputs=(dataclasses.replace(tiny.INPUTS[0], dtype="int64"),))
    wider = dataclasses.replace(tiny.INPUTS[0], shape=(tiny.BATCH, Dim("features", 1, 16, 32)))
    with pytest.raises(CompressError, match=r"input 'x' is float32\[\?, 16\], the model's is .*features=1..32"):
        _read(path, inputs=(wider,))
    with pytest.raises(CompressError, match="input 'x'"):
        _read(path, inputs=(dataclasses.replace(tiny.INPUTS[0], shape=(16,)),))


def test_the_precision_must_be_the_files_and_the_targets(tmp_path: Path) -> None:
    floating, quantized = tiny.floating(tmp_path / "f.onnx"), tiny.quantized(tmp_path / "q.onnx")
    _read(quantized, "int8")
    _read(floating, "bf16")
    with pytest.raises(CompressError, match=r"f.onnx has no QuantizeLinear or .* node, so it cannot become int8"):
        _read(floating, "int8")
    with pytest.raises(CompressError, match=r"q.onnx has QuantizeLinear/Deq.* nodes, so it cannot become bf16"):
        _read(quantized, "bf16")
    with pytest.raises(CompressError, match=r"'onnxruntime-cpu' cannot run fp16: no half kernels; ask for int8, fp32$"):
        _read(floating, "fp16", ORT)
    with pytest.raises(CompressError, match="'openvino-cpu' cannot run fp16: its half precision is bf16"):
        _read(floating, "fp16")


def test_new_folder_is_new_and_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a" / "engine") as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not (tmp_path / "a" / "engine").exists()
    with pytest.raises(CompressError, match="exists already"), new_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["a"]


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CompressError, match=r'needs openvino .*pip install "compress-edge\[openvino\]"'):
        import_backend("openvino", OPENVINO)
