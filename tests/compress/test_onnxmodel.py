"""An ONNX file as a model: its specs are the file's, what cannot work on it says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import calibration
import compress
from compress import CompressError, Dim, Input
from compress.inspection import inspect
from compress.onnxmodel import OnnxModel, read_onnx_model
from compress.targets import get_target
from tests.compress.onnxfiles import classifier, expected, write


def test_specs_are_the_files(tmp_path: Path) -> None:
    model = compress.load(write(tmp_path / "net.onnx"))
    assert isinstance(model, OnnxModel)
    assert model.name == "net"
    [image], [scores] = model.inputs, model.outputs
    assert (image.name, image.dtype, image.shape) == ("image", "float32", (Dim("batch", 1, 1, 64), 1, 8, 8))
    assert (image.batch_axis, image.modality) == (0, "image")
    assert (scores.name, scores.shape, scores.batch_axis) == ("scores", (Dim("batch", 1, 1, 64), 3), 0)


def test_open_sizes_are_named_as_in_the_file_and_tuned_for_the_example(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["ids"], ["same"], name="id")], "words",
        [value("ids", TensorProto.INT64, ["B", "sequence len"])], [value("same", TensorProto.INT64, ["B", None])],
    )  # fmt: skip
    path = write(tmp_path / "words.onnx", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    [ids] = read_onnx_model(path).inputs
    assert ids.shape == (Dim("batch", 1, 1, 64), Dim("sequence_len", 1, 1, 4096))
    assert ids.modality == "text"
    model = read_onnx_model(path, {"ids": Input(modality="sensor")}, {"ids": np.zeros((2, 5), np.int64)})
    assert model.inputs[0].shape[1] == Dim("sequence_len", 1, 5, 20)
    assert model.inputs[0].modality == "sensor"
    assert model.outputs[0].shape == (Dim("batch", 1, 1, 64), Dim("same_axis1", 1, 1, 4096))


def test_the_float_file_becomes_engines(tmp_path: Path) -> None:
    proto = classifier()
    model = compress.load(write(tmp_path / "net.onnx", proto))
    image = np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        engine = compress.export(model, get_target(target), tmp_path / target)
        assert engine.precision == "fp32"
        engines = {target: engine}
        made = compress.bundle(model, engines, {"image": image[:2]}, tmp_path / f"{target}.bundle")
        import runtimes

        with runtimes.load(made.path, target=target) as session:
            np.testing.assert_allclose(session.run({"image": image})["scores"], expected(proto, image), rtol=1e-4,
                                       atol=1e-5)  # fmt: skip


def test_stages_of_a_module_say_why_not(tmp_path: Path) -> None:
    model = compress.load(write(tmp_path / "net.onnx"))
    calibration.write(tmp_path / "data", {"image": np.zeros((4, 1, 8, 8), np.float32)})
    data = calibration.open_set(tmp_path / "data", model.inputs)
    with pytest.raises(CompressError, match=r"'net' is an ONNX file, and prune needs the PyTorch module .*: channels"):
        compress.prune(model, data)
    with pytest.raises(CompressError, match=r"'net' is an ONNX file, and distill needs the PyTorch module .*: student"):
        compress.distill(model, model, data)
    with pytest.raises(CompressError, match=r"'net' is an ONNX file, without the PyTorch program that this needs"):
        inspect(model)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info

    def wired(source: onnx.ValueInfoProto, name: str, made: onnx.ValueInfoProto | None = None) -> Path:
        kind = "Identity" if made is None else "SequenceConstruct"
        made = made or value("y", source.type.tensor_type.elem_type, ["N"])
        graph = helper.make_graph([helper.make_node(kind, [source.name], ["y"], name="id")], "g", [source], [made])
        return write(tmp_path / name, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))

    several = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["N"])
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x0a\xff\xff")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for path, message in (
        (tmp_path / "noise.onnx", "noise.onnx is not an ONNX model"),
        (tmp_path / "empty.onnx", "empty.onnx is not an ONNX model"),
        (wired(value("x", TensorProto.FLOAT, []), "scalar.onnx"), "input 'x' is a single number: export it with a"),
        (wired(value("x:0", TensorProto.FLOAT, ["N"]), "name.onnx"), "input 'x:0' has a name files cannot carry"),
        (wired(value("x", TensorProto.FLOAT, ["N"]), "list.onnx", several), "output 'y' is no tensor of a known"),
        (wired(value("x", TensorProto.STRING, ["N"]), "text.onnx"), "input 'x' has the type object: give an array of"),
    ):
        with pytest.raises(CompressError, match=message):
            compress.load(path)


def test_an_example_and_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    with pytest.raises(CompressError, match="input 'image' has 4 axes, the example 2"):
        read_onnx_model(path, example={"image": np.zeros((1, 8), np.float32)})
    with pytest.raises(CompressError, match="has no input 'picture': its inputs are"):
        read_onnx_model(path, {"picture": Input()})


def test_data_in_another_file_are_refused(tmp_path: Path) -> None:
    onnx.save(classifier(channels=64), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin",
              size_threshold=0)  # fmt: skip
    with pytest.raises(CompressError, match=r"net\.onnx"):
        compress.load(tmp_path / "net.onnx")
