"""The example record: a fixture with plausible figures, measured nowhere."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

_PEAKS = {
    "int8": {"macs_per_s": 4.1e11, "source": "measured", "note": "product of 1024 x 1024 matrices, which ran in int8"},
    "bf16": {"macs_per_s": 2.0e11, "source": "measured", "note": "product of 1024 x 1024 matrices, which ran in bf16"},
    "f32": {"macs_per_s": 1.0e11, "source": "measured", "note": "product of 1024 x 1024 matrices, which ran in f32",
            "busy": True},
}
_DATASHEET = {"int8": {"macs_per_s": 16.5e12, "source": "datasheet", "note": "33 TOPS dense, the row jetson-orin-nano"}}
_TELEMETRY = {
    "clock_mhz_before": 3100.0, "clock_mhz_after": 3050.0, "temperature_c_before": 48.0, "temperature_c_after": 61.0,
    "spin_change": 0.012, "throttled": False, "power_mode": None, "power_w": 14.2, "energy_per_inference_mj": 16.9,
    "energy_source": "RAPL package", "foreign_cpu_share": 0.011, "steal_share": 0.0,
    "memory_available_bytes": 5_100_000_000,
}  # fmt: skip
_COVERAGE = {
    "samples": [{
        "set": "calibration", "samples": 300, "of": 1200, "lengths": [3, 7, 11],
        "inputs": {"image": {"modality": "image", "present": 288, "present_of": 1150, "distinct": 299}},
        "sizes": {"length": {"min": 1, "opt": 12, "max": 32, "least": 4, "most": 11}},
        "labels": {"classes": 11, "lost": 0, "fewest": ["seven", 9], "most": ["yes", 81]},
    }],
    "components": {"image_encoder": {"tensors": 18, "still": 2, "values_least": 38_400}},
    "tensors": [{"layer": "image_encoder.layer0", "clipped": 0.0001}, {"layer": "elsewhere", "clipped": 0.5},
                {"layer": "image_encoder.layer1", "clipped": 0.02}],
    "findings": [{"kind": "size", "where": "length", "text": "dimension 'length' is 4 to 11, declared 1 to 32"},
                 {"kind": "outlier", "where": "a", "text": "sample 17 of 'calibration' reaches 1e+06 in <b>"}],
}  # fmt: skip
_UNREAD = dict.fromkeys(_TELEMETRY)


@pytest.fixture
def example() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(__file__).parent / "example_report.json").read_bytes())
    return record


def component(layers: int, **parts: tuple[float, int, int]) -> dict[str, Any]:
    """``int8=(µs, arithmetic layers, MACs)`` and so on."""
    return {
        "layers": layers, "time_us": sum(us for us, _, _ in parts.values()), "roofline": 0.31,
        "precisions": {name: count for name, (_, count, _) in parts.items() if count},
        "times_us": {name: us for name, (us, _, _) in parts.items()},
        "macs": {name: macs for name, (_, _, macs) in parts.items() if macs},
    }  # fmt: skip


@pytest.fixture
def everything(example: dict[str, Any]) -> dict[str, Any]:
    """The example with all that a record may hold: several machines, marks, a lost device, an emulated one, components,
    rooflines, and conditions read and unread."""
    bench = example["bench"]
    rows = {row["name"]: row for row in bench["rows"]}
    fp32, int8 = rows["original fp32, openvino-cpu"], rows["shipped int8, openvino-cpu"]
    other, jetson = rows["shipped int8, onnxruntime-cpu"], rows["shipped int8, jetson-orin-nano"]
    bench["complete"] = False
    bench["config"]["scenario"] = "single_stream"
    bench["machines"] |= {
        "jetson-orin-nano": {"board": "NVIDIA Jetson Orin Nano (fixture)", "jetpack": "6.2", "power_mode": "15W"},
        "rpi5, emulated": {"cpu": "Cortex-A76 (fixture)", "emulated": True},
    }
    bench["versions"] |= {"jetson-orin-nano": {"tensorrt": "10.3.0"}, "rpi5, emulated": {"onnxruntime": "1.31.0"}}
    fp32.update(
        telemetry={**_TELEMETRY, "energy_per_inference_mj": 92.0},
        components={
            "image_encoder": component(41, f32=(3600.0, 22, 170_000_000)),
            "text_encoder": component(60, f32=(420.0, 12, 11_000_000)),
            "fusion": component(44, f32=(1900.0, 15, 39_000_000)), "head": component(6, f32=(70.0, 1, 4_600)),
            "shared": component(3, i64=(9.0, 0, 0)),
        },
        roofline={"share": 0.34, "macs": {"f32": 220_000_000}, "peaks": {"f32": _PEAKS["f32"]}, "uncounted": 0},
    )  # fmt: skip
    int8.update(
        telemetry=_TELEMETRY, marks=[{"kind": "UNSTABLE", "reason": "the interval of p50 reaches from -1.9% to +3.4%"}],
        components={
            "image_encoder": component(48, int8=(560.0, 18, 84_000_000), bf16=(210.0, 4, 2_000_000)),
            "text_encoder": component(63, int8=(120.0, 10, 5_400_000), bf16=(95.0, 2, 300_000), f32=(4.0, 0, 0)),
            "fusion": component(51, int8=(310.0, 13, 20_000_000), bf16=(160.0, 2, 900_000)),
            "head": component(9, int8=(22.0, 1, 4_600)), "shared": component(4, i64=(8.0, 0, 0)),
        },
        roofline={
            "share": 0.164, "macs": {"int8": 109_404_600, "bf16": 3_200_000}, "uncounted": 0,
            "peaks": {"int8": _PEAKS["int8"], "bf16": _PEAKS["bf16"]},
        },
        unexpected=[
            "fusion::node_MatMul_12: MatMul in bf16 (kernel brgemm_avx512_bf16, operands bf16 and bf16)",
            "fusion::node_MatMul_19: MatMul in bf16 (the backend gives no reason)",
        ],
    )  # fmt: skip
    int8["latency_ms"].update(p99=None, p95=None, estimates={"p90": 1.31, "p95": 1.52, "p99": None})
    other.update(
        telemetry={**_UNREAD, "foreign_cpu_share": 0.21, "spin_change": 0.094}, status="partial",
        marks=[
            {"kind": "UNSTABLE", "reason": "the interval of p50 reaches from -2.5% to +10.1% of it"},
            {"kind": "INVALID", "reason": "other processes took 21% of the cores' time"},
        ],
        reason="interrupted", unexpected=[
            "image_encoder::node_conv2d: Conv in f32 (f32 operands from DequantizeLinear and DequantizeLinear, result "
            "read by Gelu; an int8 Conv needs a QuantizeLinear right behind it)"
        ],
        roofline={"share": 0.27, "macs": {"int8": 90_000_000, "f32": 20_000_000}, "peaks": _PEAKS, "uncounted": 2},
    )  # fmt: skip
    other["speedup"]["vs_original_fp32"]["different"] = False
    jetson.update(
        status="device lost", machine="jetson-orin-nano", reason="jetson-orin-nano: nothing came for 15 s",
        latency_ms={**copy.deepcopy(int8["latency_ms"]), "restarts": 2}, accuracy=copy.deepcopy(int8["accuracy"]),
        marks=[{"kind": "INVALID", "reason": "throttled: the thermal limit of the GPU held in 2 of 2 processes"}],
        telemetry={
            **_TELEMETRY, "power_mode": "15W", "throttled": True, "energy_source": "INA3221 VDD_IN",
            "temperature_c_after": 88.0,
        },
        components={"image_encoder": {**component(20, int8=(0.0, 18, 84_000_000)), "time_us": None, "times_us": {},
                                      "roofline": None}},
        roofline={"share": 0.031, "macs": {"int8": 84_000_000}, "peaks": _DATASHEET, "uncounted": 9},
    )  # fmt: skip
    emulated = copy.deepcopy(rows["shipped int8, onnxruntime-cpu"])
    emulated.update(
        name="shipped int8, rpi5", target="rpi5", machine="rpi5, emulated", status="emulated", latency_ms=None,
        marks=[], telemetry=None, speedup={}, reason=None, roofline=None, unexpected=[], load_ms=None,
        throughput_per_s=None, peak_memory_bytes=None,
        emulated_parity={"largest_difference": 0.0031, "largest_output": 14.2, "same_answers": 0.99954,
                         "samples": 2160},
    )  # fmt: skip
    bench["rows"].append(emulated)
    for stage in example["stages"]:
        if stage["stage"] == "quantize":
            stage["summary"]["coverage"] = _COVERAGE
    return copy.deepcopy(example)


def effect(noise: float | None, points: float | None = None) -> dict[str, Any]:
    drop = None if points is None else {"points": points, "interval": [points - 0.5, points + 0.75], "n": 256}
    return {"noise": noise, "sqnr_db": None if not noise else -10 * math.log10(noise), "drop": drop, "failure": None}


@pytest.fixture
def sensitivity_stage() -> dict[str, Any]:
    """A stage as a run records it: two towers and what joins them."""
    parts = [
        {"kind": kind, "name": name, "layers": layers, "modality": modality, "reached": noise > 0,
         "int8": effect(noise, points), "float": effect(noise / 2, points / 2)}
        for kind, name, layers, modality, noise, points in (
            ("component", "see", 3, "image", 1e-3, 1.25), ("component", "read", 2, "text", 1e-5, 0.0),
            ("layer", "see.0", 1, "image", 8e-4, 1.0), ("layer", "read.0", 1, "text", 1e-5, 0.0),
            ("layer", "spare", 1, "image", 0.0, 0.0),
        )
    ]  # fmt: skip
    summary = {
        "format": "compress.sensitivity", "version": 1, "metric": "accuracy", "scheme": "x86-vnni", "data": "d" * 64,
        "samples": 256, "complete": True, "in_float": 0.98, "everything": effect(2e-3, 1.5), "parts": parts,
    }  # fmt: skip
    return {"stage": "sensitivity", "target_scheme": "x86-vnni", "seconds": 12.0, "summary": summary}


@pytest.fixture
def budget_stage() -> dict[str, Any]:
    """A stage as a run records it: three parts, of which one is left in float."""
    def point(name: str, floats: list[str], points: float, ms: float, *, real: bool = True) -> dict[str, Any]:
        drop = {"points": points, "interval": [points - 0.3, points + 0.4], "n": 500, "verdict": "undecidable at n=500"}
        guess = {"points": points + 0.1, "latency_ms": {"openvino-cpu": ms}}
        return {"name": name, "float": floats, "predicted": guess,
                "drop": drop if real else None, "latency_ms": {"openvino-cpu": 1.02 * ms} if real else None,
                "failure": None}  # fmt: skip

    summary = {
        "format": "compress.budget", "version": 1, "metric": "accuracy", "data": "d" * 64, "max_drop": 0.01,
        "outcome": "met", "sentence": "1 of 3 parts in float: a drop of 0.004, where 0.01 is allowed; 1.12 ms on "
        "openvino-cpu.", "complete": True, "timed": ["openvino-cpu"], "untimed": {"rpi5": "it has no address"},
        "best": "round 1",
        "points": [
            point("all int8", [], 2.5, 1.0), point("all float", ["see", "read", "join"], 0.0, 2.0),
            point("round 1", ["see"], 0.4, 1.1), point("guess", ["see", "join"], 0.2, 1.5, real=False),
            {"name": "round 2", "float": ["read"], "predicted": {"points": 2.0, "latency_ms": {"openvino-cpu": 1.05}},
             "drop": None, "latency_ms": None, "failure": "OpenVINO refuses it"},
        ],
        "parts": [
            {"name": "see", "components": ["see"], "layers": 3, "choice": "float",
             "why": "int8 costs too much of the budget", "noise": 1e-3, "points": 1.25,
             "times_us": {"openvino-cpu": {"int8": 400.0, "float": 900.0}}},
            {"name": "read", "components": ["read"], "layers": 2, "choice": "int8", "why": "", "noise": 1e-5,
             "points": 0.0, "times_us": {"openvino-cpu": {"int8": 100.0, "float": 300.0}}},
            {"name": "join", "components": ["join"], "layers": 1, "choice": "int8", "why": "", "noise": None,
             "points": None, "times_us": {}},
        ],
    }  # fmt: skip
    return {"stage": "budget", "target_scheme": "x86-vnni", "seconds": 40.0, "summary": summary}


@pytest.fixture
def search() -> dict[str, Any]:
    """The section of a search of three rounds, as a run records it: the second is kept, the third loses too much."""
    def figures(ms: float, points: float, size: int, **components: float) -> dict[str, Any]:
        return {"latency_ms": ms, "speedup": 4.0 / ms, "interval": [3.9 / ms, 4.1 / ms], "score": 0.98 - points / 100,
                "drop": {"points": points, "interval": [points - 0.3, points + 0.4]}, "size_bytes": size,
                "components_us": components}  # fmt: skip

    def done(number: int, share: float, ms: float, points: float, *stages: dict[str, Any]) -> dict[str, Any]:
        see, read = round(200_000_000 * share), 20_000_000
        part = {"layers": 3, "reached": True, "float": None, "int8": effect(1e-3, points / 2)}
        return {
            "number": number, "began": number - 1 if number else None, "asked": 1.5 if number else 1.0, "failure": None,
            "speedup": 4.0 / ms, "points": points, "ships": {"openvino-cpu": "int8"}, "macs": see + read,
            "params": 1_000_000, "components": {"see": {"macs": see, "params": 900_000, "modality": "image"},
                                                "read": {"macs": read, "params": 100_000, "modality": "text"}},
            "measured": {"openvino-cpu": {
                "fp32": figures(2 * ms, points / 4, 4_000_000, see=1500 * ms, read=500.0),
                "int8": figures(ms, points, 1_000_000, see=800 * ms, read=250.0)}},
            "parts": {"x86-vnni": [{"kind": "component", "name": "see", "modality": "image", **part},
                                   {"kind": "modality", "name": "image", "modality": "image", **part}]},
            "stages": [*stages, {"stage": "measure", "target_scheme": None, "seconds": 30.0, "summary": {}}],
        }  # fmt: skip

    pruned = {"stage": "prune", "target_scheme": None, "seconds": 20.0,
              "summary": {"macs_before": 220_000_000, "macs_after": 120_000_000}}  # fmt: skip
    low = {"stage": "quantize", "target_scheme": "x86-vnni", "seconds": 2.0, "summary": {}}
    failed = {"number": 3, "began": 1, "asked": 1.22, "stages": [pruned],
              "failure": "cannot prune to <b>1.22</b> times"}  # fmt: skip
    return {
        "metric": "accuracy", "max_drop": 0.01, "speedup": None, "complete": True, "outcome": "met", "kept": 1,
        "sentence": "kept: 4 times as fast as the original's fp32 engine with a drop of 0.004, round 1 of 3",
        "targets": ["openvino-cpu"], "untimed": {"rtx": "its engines are built here"},
        "rounds": [done(0, 1.0, 2.0, 0.0, low), done(1, 0.5, 1.0, 0.4, pruned, low),
                   done(2, 0.25, 0.7, 1.8, pruned, low), failed],
    }  # fmt: skip
