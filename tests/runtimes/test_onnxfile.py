"""External data is found wherever a tensor can be, without the onnx package; onnx itself writes the models here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtimes.backends import open_engine
from runtimes.engine import write_engine
from runtimes.errors import RuntimesError
from runtimes.onnxfile import refuse_external_data
from tests.contracts.models import BY_NAME, CASES


def external(location: str = "../secret") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_initializer() -> onnx.ModelProto:
    model = BY_NAME["matmul"].build()
    model.graph.initializer[0].CopyFrom(external())
    return model


def with_constant_in_a_branch() -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external())], "branch", [], [])
    model = BY_NAME["matmul"].build()
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    return model


def with_sparse() -> onnx.ModelProto:
    model = BY_NAME["matmul"].build()
    model.graph.sparse_initializer.add().values.CopyFrom(external())
    return model


def with_tensor_list() -> onnx.ModelProto:
    model = BY_NAME["matmul"].build()
    model.graph.node[0].attribute.add(name="ts", type=onnx.AttributeProto.TENSORS).tensors.append(external())
    return model


def with_function() -> onnx.ModelProto:
    model = BY_NAME["matmul"].build()
    model.functions.add(name="f", domain="d").node.append(helper.make_node("Constant", [], ["c"], value=external()))
    return model


def with_training() -> onnx.ModelProto:
    model = BY_NAME["matmul"].build()
    model.training_info.add().initialization.initializer.append(external())
    return model


HIDING = [with_initializer, with_constant_in_a_branch, with_sparse, with_tensor_list, with_function, with_training]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_self_contained_models_pass(case: object) -> None:
    refuse_external_data(case.build().SerializeToString(), "model.onnx")  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", HIDING)
def test_external_data_is_found(build: object) -> None:
    with pytest.raises(RuntimesError, match=r"m\.onnx: tensor 'w' keeps its data in another file \('\.\./secret'\)"):
        refuse_external_data(build().SerializeToString(), "m.onnx")  # type: ignore[operator]


def test_a_location_without_the_flag_and_the_flag_without_a_location() -> None:
    model = with_initializer()
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    with pytest.raises(RuntimesError, match="tensor 'w' keeps its data in another file"):
        refuse_external_data(model.SerializeToString(), "m")
    del model.graph.initializer[0].external_data[:]
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(RuntimesError, match=r"tensor 'w' keeps its data in another file \(unnamed\)"):
        refuse_external_data(model.SerializeToString(), "m")


def test_a_second_copy_of_the_graph_field_is_looked_at() -> None:
    """Protobuf merges repeated occurrences of one message, so the second may bring the tensor."""
    hidden = onnx.ModelProto()
    hidden.graph.initializer.append(external())
    with pytest.raises(RuntimesError, match="tensor 'w'"):
        refuse_external_data(BY_NAME["matmul"].build().SerializeToString() + hidden.SerializeToString(), "m")


@pytest.mark.parametrize(("data", "message"), [
    (b"\x3a\xff", "not an ONNX model"),
    (b"\x3a\x05ab", "field 7 is cut short"),
    (b"\x3b\x3c", "wire type 3"),
    (b"\x00", "field number 0"),
    (b"\xba\x80\x80\x80\x80\x01\x00", "field number"),
    (b"\xff" * 12, "more than ten bytes"),
    (b"\x12\x06ORORTM", "ORT-format"),
])
def test_not_an_onnx_model(data: bytes, message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        refuse_external_data(data, "model.onnx")


@pytest.mark.parametrize("build", HIDING[:2])
def test_onnx_runtime_never_sees_it(build: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    (tmp_path / "secret").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(build().SerializeToString())  # type: ignore[operator]
    case = BY_NAME["matmul"]
    engine = write_engine(
        folder, backend="onnxruntime", device="CPU", precision="fp32", entry="model.onnx", inputs=case.inputs,
        outputs=case.outputs, options={}, source="", built_with={}, state="runnable")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("ONNX Runtime saw it"))
    with pytest.raises(RuntimesError, match=r"model\.onnx: tensor 'w' keeps its data in another file"):
        open_engine(engine)


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_only_runtimes_errors(noise: bytes, at: int) -> None:
    data = BY_NAME["qdq_matmul"].build().SerializeToString()
    at %= len(data)
    try:
        refuse_external_data(data[:at] + noise + data[at + len(noise):], "m")
    except RuntimesError as error:
        assert str(error).startswith("m")  # noqa: PT017


@given(st.text(max_size=20))
def test_whatever_onnx_itself_calls_external_is_refused(location: str) -> None:
    model = BY_NAME["matmul"].build()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    with pytest.raises(RuntimesError, match="tensor 'w'"):
        refuse_external_data(model.SerializeToString(), "m")
