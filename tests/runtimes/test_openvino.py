"""What only OpenVINO has; the rest is in tests/contracts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes import openvino
from runtimes.backends import open_engine
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError
from runtimes.machine import machine_facts


def node(name: str, kind: str, *sources: Any, precision: str = "f32", time: str = "not_executed") -> Any:
    info = {"layerType": kind, "runtimePrecision": precision, "execTimeMcs": time}
    values = [SimpleNamespace(get_node=lambda source=source: source) for source in sources]
    return SimpleNamespace(get_friendly_name=lambda: name, get_rt_info=lambda: info, input_values=lambda: values)


def test_layers_of_a_runtime_model() -> None:
    x, w = node("x", "Input"), node("w", "Const", precision="i8")
    turned = node("turned", "Transpose", w, precision="i8", time="40")
    product = node("product", "FullyConnected", x, turned, precision="u8", time="200")
    tiny = node("tiny", "Reshape", product, precision="bf16")
    y = node("y", "Output", tiny)
    model = SimpleNamespace(get_ordered_ops=lambda: [x, w, turned, product, tiny, y])
    times = openvino._times(model)
    assert times == {"x": 0, "w": 0, "turned": 40, "product": 200, "tiny": 0, "y": 0}
    layers = openvino._layers(model, {name: time / 2 for name, time in times.items()})
    assert [dataclasses.astuple(layer) for layer in layers] == [
        ("product", "FullyConnected", "int8", 100.0), ("tiny", "Reshape", "bf16", 0.0)]


def test_the_first_run_is_not_counted() -> None:
    assert openvino.PROFILED_RUNS == 10
    assert openvino._steady(first=1000, mean=190) == pytest.approx(109)     # (11 * 190 - 1000) / 10
    assert openvino._steady(first=100, mean=9) == 0.0                       # rounded down by OpenVINO


@pytest.mark.parametrize(("hint", "flag", "precision"), [("bf16", "avx512_bf16", "bf16"), ("f32", None, "f32")])
def test_precision_follows_the_options(hint: str, flag: str | None, precision: str, made_bundle: Path) -> None:
    if flag and flag not in machine_facts()["flags"]:
        pytest.skip(f"this CPU has no {flag}")
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    runner = open_engine(dataclasses.replace(engine, options={"INFERENCE_PRECISION_HINT": hint}), threads=1)
    found = [layer.precision for layer in runner.layers() if layer.type == "FullyConnected"]
    runner.close()
    assert found == [precision]


def test_option_with_a_wrong_value(made_bundle: Path) -> None:
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    with pytest.raises(RuntimesError, match=r"OpenVINO cannot open it on CPU.*Wrong value nonsense"):
        open_engine(dataclasses.replace(engine, options={"INFERENCE_PRECISION_HINT": "nonsense"}))


def test_device_that_is_not_here(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/openvino-cpu"), device="NPU")
    with pytest.raises(RuntimesError, match="OpenVINO cannot open it on NPU"):
        open_engine(engine)


def test_not_an_ir(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/openvino-cpu"), entry="model.bin")
    with pytest.raises(RuntimesError, match=r"model\.bin is not an OpenVINO IR"):
        open_engine(engine)
