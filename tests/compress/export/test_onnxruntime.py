"""ONNX Runtime engines: the checked bytes of the ONNX file, which ONNX Runtime has opened once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compress.errors import CompressError
from compress.export import export
from compress.export.onnxruntime import build
from compress.saving import export_model
from compress.targets import targets
from runtimes.engine import Engine, Precision, read_engine
from tests.compress.export import tiny_models as tiny


def _build(path: Path, into: Path, precision: Precision, target: str = "onnxruntime-cpu") -> Engine:
    return build(path, targets()[target], into, inputs=tiny.INPUTS, outputs=tiny.OUTPUTS, precision=precision)


def _run(engine: Engine, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(engine.path / engine.entry, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("target", "zero_point", "type", "low", "high"),
    [("onnxruntime-cpu", 128, np.uint8, 0, 255), ("rpi5", 0, np.int8, -128, 127)],
)
def test_int8_answers(
    tmp_path: Path, batch: int, target: str, zero_point: int, type: type[np.generic], low: int, high: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    x = rng.uniform(-5, 5, (batch, tiny.FEATURES)).astype(np.float32)
    engine = _build(tiny.quantized(tmp_path / "q.onnx", zero_point, type), tmp_path / "engine", "int8", target)
    np.testing.assert_allclose(_run(engine, x), tiny.quantized_answer(x, zero_point, low, high), atol=1e-4)


def test_the_engine_is_the_file(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tiny.floating(tmp_path / "somewhere.onnx")
    engine = _build(path, tmp_path / "engine", "fp32")
    assert (engine.path / "model.onnx").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in engine.path.iterdir()) == ["engine.json", "model.onnx"]
    assert (engine.state, engine.options) == ("runnable", {})
    assert engine.built_with == {"onnxruntime": onnxruntime.__version__}
    assert read_engine(engine.path) == engine
    assert _build(path, tmp_path / "again", "fp32").digest == engine.digest
    x = rng.standard_normal((2, tiny.FEATURES)).astype(np.float32)
    np.testing.assert_allclose(_run(engine, x), tiny.floating_answer(x), atol=1e-5)


def test_half_precision_has_no_kernels(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="'onnxruntime-cpu' cannot run bf16: no half kernels"):
        _build(tiny.floating(tmp_path / "model.onnx"), tmp_path / "engine", "bf16")


def test_what_onnxruntime_refuses_leaves_nothing(tmp_path: Path) -> None:
    path = tiny.floating(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, path)
    with pytest.raises(CompressError, match=r"ONNX Runtime refuses .*model.onnx: .*'nowhere' is not a graph input"):
        _build(path, tmp_path / "engine", "fp32")
    assert not (tmp_path / "engine").exists()


def test_a_model_in_bfloat16_is_refused_with_its_remedy(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 2).to(torch.bfloat16)

    class Rounded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.to(torch.bfloat16)).float()

    model = export_model(Rounded(), name="rounded", example={"x": np.ones((2, 4), np.float32)})
    with pytest.raises(CompressError, match=r"Gemm.*layer::.*few kernels for bfloat16, .*: cast it to float32"):
        export(model, targets()["onnxruntime-cpu"], tmp_path / "engine")
