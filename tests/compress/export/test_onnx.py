"""The ONNX interchange: Q/DQ where the kernels want them, names and dimensions kept, nothing about its author in it."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.export import export_onnx
from compress.export.onnx import write_onnx
from compress.model import Input, Model
from compress.program import run_program
from compress.quantize import quantize
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import Target, targets
from runtimes.spec import Dim
from tests.compress.quantize import networks

ROOT = Path(__file__).parents[3]
OPENVINO, RTX = targets()["openvino-cpu"], targets()["rtx"]


def written(model: Model, folder: Path, target: Target = OPENVINO) -> onnx.ModelProto:
    path = export_onnx(model, target, folder / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


def ops(model: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.node)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}


def run_onnx(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def test_quantize_and_dequantize_counts(tmp_path: Path) -> None:
    """Six layers, each with a tensor of its own: a pair for it, one for each convolution's result, a DQ per weight."""
    found = ops(written(networks.quantized(networks.Everything), tmp_path))
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (8, 14)
    assert (found["Conv"], found["MatMul"] + found["Gemm"]) == (2, 4)
    float_only = ops(written(networks.make(networks.Everything), tmp_path))
    assert not {"QuantizeLinear", "DequantizeLinear", "Sub"} & set(float_only)


def test_a_tensor_read_twice_is_quantized_once(tmp_path: Path) -> None:
    found = ops(written(networks.quantized(networks.TwoReaders), tmp_path))
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 2 + 3)


def test_each_int8_weight_reaches_its_layer_through_one_dequantize(tmp_path: Path) -> None:
    model = written(networks.quantized(networks.Everything), tmp_path)
    weights = {name for name, value in constants(model).items() if value.dtype == np.int8 and value.ndim > 1}
    assert len(weights) == 6
    for name in weights:
        (dequantize,) = [node for node in model.graph.node if name in node.input]
        assert dequantize.op_type == "DequantizeLinear"
        readers = [node for node in model.graph.node if dequantize.output[0] in node.input]
        assert [node.op_type in ("Conv", "MatMul", "Gemm") for node in readers] == [True]
        assert readers[0].input[1] == dequantize.output[0]


@pytest.mark.parametrize("target", [OPENVINO, RTX], ids=["u8", "s8"])
def test_zero_points_and_types(tmp_path: Path, target: Target) -> None:
    model = written(networks.quantized(networks.Everything, target.scheme), tmp_path, target)
    values = constants(model)
    points = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {point.dtype for point in points} == {np.dtype(np.uint8 if target is OPENVINO else np.int8)}
    assert any(point != 0 for point in points) is (target is OPENVINO)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            assert not values[node.input[2]].any()
            assert values[node.input[1]].ndim == 1  # one scale for each output channel


def test_opset_names_and_dynamic_dimensions(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.seen = nn.Embedding(9, 4), nn.Linear(3, 4)

        def forward(self, image: Tensor, question: Tensor) -> dict[str, Tensor]:
            words = self.words(question)
            return {"tokens": words, "pooled": words.mean(1) + self.seen(image)}

    inputs = {"question": Input(dims=("batch", Dim("length", 2, 4, 9)))}
    example = {"image": np.zeros((2, 3), np.float32), "question": np.ones((2, 4), np.int64)}
    model = export_model(Two(), name="two", example=example, inputs=inputs)
    for opset in (18, 20):
        path = write_onnx(model.graph, tmp_path / "m.onnx", opset=opset)
        loaded = onnx.load(path)
        assert [(o.domain, o.version) for o in loaded.opset_import if o.domain == ""] == [("", opset)]
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*loaded.graph.input, *loaded.graph.output)
        }
        assert list(shapes.items()) == [
            ("image", ["batch", 3]), ("question", ["batch", "length"]), ("tokens", ["batch", "length", 4]),
            ("pooled", ["batch", 4]),
        ]  # fmt: skip
    feed = {"image": np.ones((3, 3), np.float32), "question": np.arange(9, dtype=np.int64)[None].repeat(3, 0)}
    expected = run_program(model, feed)
    for name, value in run_onnx(loaded, feed).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


@pytest.mark.parametrize("network", [networks.TwoReaders, networks.Everything, networks.Normed])
@pytest.mark.parametrize("target", [OPENVINO, RTX], ids=["u8", "s8"])
def test_onnx_runtime_computes_what_torch_does(tmp_path: Path, network: type[nn.Module], target: Target) -> None:
    """int8 products are exact; float sums in another order may tip a value into the next step of a later layer."""
    model = networks.quantized(network, target.scheme)
    (feed,) = networks.samples(model, 16, seed=5).batches(16)
    expected = run_program(convert(model), feed)["output"]
    found = run_onnx(written(model, tmp_path, target), dict(feed))["output"]
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())
    assert np.median(np.abs(found - expected)) < 1e-5 * np.abs(expected).max() + 1e-6


class Fixed(nn.Module):
    """Linear layers on three axes of fixed sizes, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.mark.parametrize("shape", [(1, 6, 8), (2, 8), (2, 6, 8)])
def test_onnx_runtime_runs_layers_with_a_bias_in_int8(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """On three axes with a batch of one for ever, on two axes, and on three with any batch."""
    torch.manual_seed(0)
    example = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    batch = Dim("batch", 1, 1, 4 if shape[0] > 1 else 1)
    model = export_model(Fixed(), name="fixed", example=example, inputs={"x": Input(dims=(batch,))})
    model = quantize(model, open_set([example], model.inputs, name="x"), scheme="x86-vnni").model
    onnx_model = written(model, tmp_path)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 4  # it warns that the file is for this machine
    onnxruntime.InferenceSession(onnx_model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found = ops(onnx.load(tmp_path / "optimized.onnx"))
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == 2
    assert not {"Gemm", "MatMul", "FusedMatMul"} & set(found)
    expected = run_program(convert(model), example)["output"]
    np.testing.assert_allclose(run_onnx(onnx_model, example)["output"], expected, atol=1e-5)


def test_the_same_bytes_from_every_run_and_every_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from compress.export import export_onnx\n"
        "from compress.targets import targets; from tests.compress.quantize import networks\n"
        "model = networks.quantized(networks.Everything)\n"
        "export_onnx(model, targets()['openvino-cpu'], Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], cwd=tmp_path, env=environment, check=True)
    model = networks.quantized(networks.Everything)
    written_here = [export_onnx(model, OPENVINO, tmp_path / name).read_bytes() for name in "ab"]
    assert written_here[0] == written_here[1] == (tmp_path / "c").read_bytes()


def test_nothing_of_the_source_is_in_the_file(tmp_path: Path) -> None:
    for model in (networks.make(networks.Everything), networks.quantized(networks.Everything)):
        data = export_onnx(model, OPENVINO, tmp_path / "model.onnx").read_bytes()
        for trace in (b"networks", b".py", b"forward", b"Everything", b"torch.relu", b"self.", str(ROOT).encode()):
            assert trace not in data, trace
        assert onnx.load(tmp_path / "model.onnx").producer_name == "compress"


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    model = export_model(Strange(), name="strange", example={"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(CompressError, match=r"torch cannot write this model as ONNX opset 20: .*bessel_j0"):
        write_onnx(model.graph, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_outputs_named_as_something_inside(tmp_path: Path) -> None:
    """torch calls the transposed input "t" and the weight "w", and so do two outputs."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.arange(12.0).reshape(4, 3))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"t": torch.relu(x.t() @ self.w), "w": x * 2}

    x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(4, 4)
    model = export_model(Named().eval(), name="named", example={"x": x}, inputs={"x": Input(dims=())})
    found = run_onnx(written(model, tmp_path), {"x": x})
    np.testing.assert_allclose(found["t"], np.maximum(x.T @ np.arange(12.0).reshape(4, 3), 0), atol=1e-5)
    np.testing.assert_array_equal(found["w"], x * 2)


def test_a_graph_beyond_protobufs_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # compress.export is the function, so the module is found by its name
    monkeypatch.setattr(sys.modules[write_onnx.__module__], "LARGEST", 100)
    with pytest.raises(CompressError, match=r"the ONNX of this graph would be \d+ bytes: .* at most 100"):
        write_onnx(networks.make(networks.TwoReaders).graph, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_opset_17_for_tensorrt_8(tmp_path: Path) -> None:
    """Lowered from 18, whose tensors are then protobuf's own; GELU is an operator from 20 on."""

    class Gelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(self.up(x))

    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    model = export_model(Gelu().eval(), name="gelu", example={"x": x})
    proto = onnx.load(write_onnx(model.graph, tmp_path / "17.onnx", opset=17))
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [17]
    assert "Gelu" not in ops(proto)
    np.testing.assert_allclose(run_onnx(proto, {"x": x})["output"], run_program(model, {"x": x})["output"], atol=1e-6)


def test_an_output_whose_size_depends_on_values_is_refused() -> None:
    class Found(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(x)

    with pytest.raises(CompressError, match=r"output 'output' has a size that depends on values \(axis 0\)"):
        export_model(Found().eval(), name="found", example={"x": np.ones((2, 4), np.float32)})
