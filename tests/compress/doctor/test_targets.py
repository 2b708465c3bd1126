"""Examinations of what a target makes of a model: its backend, opset, memory, float16, int8 and pruning."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.doctor.examinations import backends
from compress.doctor.examinations.memory import peak_bytes
from compress.doctor.patient import Patient
from compress.doctor.reading import admit
from compress.doctor.watching import watch
from compress.saving import export_model
from compress.targets import get_target
from tests.compress.doctor.examine import Examine
from tests.compress.doctor.networks import (
    Activates,
    Around,
    Attends,
    Determinant,
    Healthy,
    Large,
    Masked,
    Unwritable,
    changed,
)

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
WORD = np.arange(6).reshape(2, 3)


def test_what_onnx_lacks_is_named_with_its_module_and_line_once_for_all_targets(examined: Examine) -> None:
    pytest.importorskip("openvino")
    (found,) = examined("backends", Around(Unwritable()), {"x": X}, targets=["onnxruntime-cpu", "openvino-cpu"])
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "bessel_j0" in found.what
    assert found.concerns == ("export", "onnxruntime-cpu", "openvino-cpu")
    assert str(found.source).endswith("return torch.special.bessel_j0(x)")


def test_a_crash_of_the_exporter_is_a_finding(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise AttributeError("no setter")

    monkeypatch.setattr(importlib.import_module("compress.export.onnx"), "write_onnx", crash)
    (found,) = examined("backends", Healthy(), {"x": X})
    assert found.what == "writing ONNX opset 20 fails: AttributeError: no setter"
    assert found.severity == "blocks"


def test_openvino_is_asked_and_names_what_it_refuses(examined: Examine, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (found,) = examined("backends", Around(Determinant()), {"x": X}, targets=["onnxruntime-cpu", "openvino-cpu"])
    assert (found.severity, found.where) == ("blocks", "inner")
    assert found.what == "OpenVINO refuses Det: No conversion rule found for operations: Det-20"
    assert str(tmp_path) not in found.what
    assert found.concerns == ("export", "openvino-cpu")
    assert str(found.source).endswith("return torch.linalg.det(x.unsqueeze(1) * x.unsqueeze(2))")


def test_onnxruntime_is_asked_and_names_what_it_refuses(examined: Examine) -> None:
    class Bfloat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.bfloat16() @ x.t().bfloat16()).float()

    (found,) = examined("backends", Around(Bfloat()), {"x": X})
    assert found.what.startswith("ONNX Runtime refuses MatMul: NOT_IMPLEMENTED")
    assert found.where == "inner"


def test_the_parser_of_tensorrt_for_rtx_is_asked_for_a_jetson_where_it_is_set_up(examined: Examine) -> None:
    if backends._absent("tensorrt_rtx") is not None:
        pytest.skip("the libraries of TensorRT for RTX are not set up: python -m compress.export.rtx_libraries")
    (found,) = examined("backends", Around(Determinant()), {"x": X}, targets=["jetson-orin-nano", "rtx"])
    assert found.what.startswith("TensorRT for RTX, asked in place of the device's TensorRT, refuses Det")
    assert found.concerns == ("export", "jetson-orin-nano", "rtx")
    assert examined("backends", Healthy(), {"x": X}, targets=["rtx"]) == []


def test_a_backend_that_is_not_here_is_said_not_to_be_asked(
    examined: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    found = examined("backends", Healthy(), {"x": X}, targets=["openvino-cpu", "rtx"])
    assert [f.severity for f in found] == ["note", "note"]
    assert found[0].remedy == 'pip install "compress-edge[openvino]"'
    assert "rtx_libraries" in found[1].remedy


def test_an_opset_that_tensorrt_8_does_not_know_is_found_with_the_operator(examined: Examine) -> None:
    old = dataclasses.replace(get_target("jetson-orin-nano"), tensorrt="8.6", jetpack="6.0")
    (found,) = examined("opset", Around(Activates()), {"x": X}, targets=[old])
    assert found.severity == "blocks"
    assert found.where == "Gelu (opset 20) in inner.act"
    assert "opset = 17" in found.remedy
    assert examined("opset", Activates(), {"x": X}, targets=[dataclasses.replace(old, opset=17)]) == []
    assert examined("opset", Activates(), {"x": X}, targets=["jetson-orin-nano"]) == []  # TensorRT 10.3 knows 20


def test_memory_counts_weights_and_the_activations_alive_at_once() -> None:
    model = export_model(Healthy(), name="m", example={"x": X})
    seen = tuple(watch(model.graph, [model.example]))
    # relu: reads up's output (3 x 16) and makes its own; nothing else is alive then
    assert peak_bytes(seen) == 2 * 3 * 16 * 4


def test_a_model_larger_than_the_targets_memory_blocks(examined: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.doctor.examinations import memory

    nano = dataclasses.replace(get_target("rpi5"), memory_gib=1)
    assert examined("memory", Healthy(), {"x": X}, targets=[nano]) == []
    # 604 bytes of activations; of the 131 weights 112 can be int8
    for weights, expected in (((600 << 20, 150 << 20), "costs speed"), ((900 << 20, 800 << 20), "blocks")):
        monkeypatch.setattr(memory, "weight_bytes", lambda patient, sizes=weights: sizes)
        (found,) = examined("memory", Healthy(), {"x": X}, targets=[nano])
        assert found.severity == expected
        assert "rpi5 has 1.07 GB" in found.what


def test_weights_that_int8_takes_count_a_byte() -> None:
    from compress.doctor.examinations.memory import weight_bytes

    patient = admit(Healthy(), [get_target("onnxruntime-cpu")], Path(), example={"x": X})
    total = 4 * (4 * 16 + 16 + 16 * 3 + 3)
    assert weight_bytes(patient) == (total, total - 3 * (4 * 16 + 16 * 3))


def test_values_beyond_float16_block_where_float16_ships(examined: Examine) -> None:
    (found,) = examined("half_range", Around(Large()), {"x": X}, targets=["jetson-orin-nano", "onnxruntime-cpu"])
    assert (found.severity, found.where) == ("blocks", "inner")
    assert "aten.mul.Tensor" in found.what
    assert str(found.source).endswith("return self.linear(x * 1e6) * 1e-6")
    assert found.concerns == ("export", "jetson-orin-nano")
    (control,) = examined("half_range", Large(), {"x": X}, targets=["rtx"])  # float16 is its control alone
    assert control.severity == "costs speed"
    assert examined("half_range", Large(), {"x": X}, targets=["onnxruntime-cpu"]) == []


def test_a_masks_infinity_is_within_float16(examined: Examine) -> None:
    assert examined("half_range", Masked(), {"x": X * 3}, targets=["jetson-orin-nano"]) == []


def test_a_weight_beyond_float16_is_found(examined: Examine) -> None:
    large = changed(Healthy(), down__bias=torch.tensor([0.0, 1e5, 0.0]))
    found = examined("half_range", large, {"x": X}, targets=["jetson-orin-nano"])
    assert "down.bias" in [f.where for f in found]


def test_outliers_of_activations_are_found_before_the_layer_that_reads_them(examined: Examine) -> None:
    x = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(2, 512, 4)
    assert examined("outliers", Healthy(), {"x": x}) == []
    x[0, 5, 0] = 1000.0
    found = examined("outliers", Healthy(), {"x": x})
    assert found[0].where == "up"
    assert "up to 1e+03" in found[0].what
    assert "--keep-float 'up'" in found[0].remedy


def test_an_outlier_of_a_channels_weights_is_found(examined: Examine) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(128, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide(x)

    x = np.ones((2, 128), np.float32)
    assert examined("outliers", Wide(), {"x": x}) == []
    weight = torch.full((2, 128), 0.1)
    weight[1, 7] = 5.0
    (found,) = examined("outliers", changed(Wide(), wide__weight=weight), {"x": x})
    assert found.where == "wide.weight"
    assert "50 times" in found.what


def test_what_stays_float_is_grouped_by_reason(examined: Examine) -> None:
    found = {f.where: f for f in examined("stays_float", Attends(), {"word": WORD})}
    assert found["words"].severity == "note"
    assert found["words"].what.startswith("1 embedding stays float: a look-up multiplies nothing")
    # the layer 3 x 8 x 8, the product 3 x 8 x 3
    assert "(27% of the model's MACs)" in found["matmul"].what
    assert found["matmul"].severity == "costs speed"
    assert len(found) == 2
    assert examined("stays_float", Healthy(), {"x": X}) == []


def test_a_model_without_a_layer_for_int8_says_so(examined: Examine) -> None:
    (found,) = examined("stays_float", Activates(), {"x": X})
    assert found.what == "no operator of this model would run in int8"


def test_pruning_says_what_it_could_take_and_what_not(examined: Examine) -> None:
    found = examined("pruning", Healthy(), {"x": X})
    assert (found[0].where, found[0].what) == ("up", "prune could take from 16 channels")
    assert (found[1].where, found[1].severity) == ("down", "note")
    assert "output of the model" in found[1].what


def test_a_model_file_without_a_factory_cannot_be_pruned(tmp_path: Path) -> None:
    from compress.doctor.examinations import pruning

    model = dataclasses.replace(export_model(Healthy(), name="m", example={"x": X}), module=None)
    patient: Patient = admit(model, [], tmp_path)
    (found,) = pruning.examine(patient)
    assert "has no factory" in found.what
