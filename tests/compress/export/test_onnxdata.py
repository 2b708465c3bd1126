"""protobuf's own writer and reader are the reference, to the byte."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export.onnxdata import LARGE, light_model, onnx_parts, size_of, write_parts

SIZES = {"small": LARGE // 4 - 1, "large": LARGE // 4, "larger": 10_000, "empty": 0}


def _model() -> onnx.ModelProto:
    """A sum of constants of every size, with something in each field behind the constants."""
    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.standard_normal((1, n)).astype(np.float32), k) for k, n in SIZES.items()]
    constants.append(numpy_helper.from_array(np.asfortranarray(np.arange(1200.0).reshape(30, 40)), "doubles"))
    constants.append(helper.make_tensor("halves", TensorProto.BFLOAT16, [600], [0.5] * 600))
    nodes = [helper.make_node("Identity", [c.name], [f"{c.name}_out"], name=f"node {c.name}") for c in constants]
    graph = helper.make_graph(
        nodes, "sum", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("large_out", TensorProto.FLOAT, [1, SIZES["large"]])], constants,
        value_info=[helper.make_tensor_value_info("larger_out", TensorProto.FLOAT, [1, SIZES["larger"]])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="test")


def _rebuilt(proto: onnx.ModelProto) -> ir.Model:
    """As the exporter leaves it: constants in arrays, one of them not in the order of its memory."""
    model = ir.from_proto(proto)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        value.const_value = ir.tensor(np.asfortranarray(array) if name == "doubles" else array, name=name)
    return model


def test_the_bytes_are_protobufs(tmp_path: Path) -> None:
    model = _rebuilt(_model())
    expected = ir.to_proto(model).SerializeToString(deterministic=True)
    parts = onnx_parts(model)
    write_parts(parts, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == expected
    assert size_of(parts) == len(expected)
    assert sum(isinstance(part, ir.Tensor) for part in parts) == 4       # large, larger, doubles and halves
    assert ir.to_proto(model).SerializeToString(deterministic=True) == expected     # the model is left as it was


def test_a_light_model_with_its_data_is_the_model(tmp_path: Path) -> None:
    proto = _model()
    data = proto.SerializeToString(deterministic=True)
    light = light_model(data, "model.onnx")
    kept = {c.name: len(c.raw_data) for c in light.graph.initializer if c.data_location == TensorProto.DEFAULT}
    assert kept == {"small": LARGE - 4, "empty": 0, "halves": 0}    # the last is in numbers, not in raw data
    (tmp_path / "model.onnx").write_bytes(data)
    onnx.save(light, tmp_path / "light.onnx")
    whole = onnx.load(tmp_path / "light.onnx")      # with what is in the places
    for constant in whole.graph.initializer:
        constant.ClearField("data_location")        # onnx says where: here
    assert whole == proto


def test_a_light_model_of_small_constants_is_the_model() -> None:
    proto = _model()
    del proto.graph.initializer[1:3], proto.graph.initializer[2:]
    assert light_model(proto.SerializeToString(), "model.onnx") == proto
    assert light_model(b"", "model.onnx") == onnx.ModelProto()


def test_fields_that_come_twice_are_merged_as_protobuf_does() -> None:
    one, two = _model().SerializeToString(), helper.make_model(helper.make_graph([], "two", [], [])).SerializeToString()
    expected = onnx.ModelProto.FromString(one + two)
    light = light_model(one + two, "m")
    assert (light.graph.name, len(light.graph.node), len(light.graph.initializer)) == ("two", 6, 6)
    assert light.opset_import == expected.opset_import
    tensor = numpy_helper.from_array(np.zeros(LARGE), "twice").SerializeToString()
    twice = tensor + TensorProto(raw_data=os.urandom(8 * LARGE)).SerializeToString()      # the last one counts
    graph = onnx.GraphProto(name="g").SerializeToString() + b"\x2a" + _varint(len(twice)) + twice
    data = b"\x3a" + _varint(len(graph)) + graph
    assert light_model(data, "m") == onnx.ModelProto.FromString(data)


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


def test_a_value_of_another_type_is_no_constant() -> None:
    """A number where the graph's constants are: protobuf keeps it as a field it does not know."""
    data = b"\x3a\x02\x28\x01"
    assert light_model(data, "m").SerializeToString() == onnx.ModelProto.FromString(data).SerializeToString()


def test_a_field_of_the_wrong_kind_is_protobufs_error() -> None:
    from google.protobuf.message import DecodeError

    with pytest.raises(DecodeError):
        light_model(b"\x3a\x04\x0a\x02\x0a\x05", "m")      # a node whose input is cut short
