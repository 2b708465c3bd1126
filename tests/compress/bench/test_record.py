"""The record's JSON, its table, and the settings."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from compress.bench import BenchConfig, BenchRecord, table
from compress.bench.config import PRESETS, Plan
from compress.bench.figures import accuracy, latency, speedup
from compress.bench.record import BenchRow, LayerRow
from compress.errors import CompressError
from compress.intervals import median_interval

SLOW, FAST = latency([[8_000_000] * 100] * 6), latency([[2_000_000] * 99] * 6)


def row(name: str, **figures: object) -> BenchRow:
    what = {"role": "candidate", "target": "openvino-cpu", "backend": "openvino", "precision": "int8",
            "digest": "0" * 64, "state": "runnable", "status": "measured", "size_bytes": 1_500_000}
    return BenchRow(name=name, **{**what, **figures})  # type: ignore[arg-type]


RECORD = BenchRecord(
    baselines={"local": "original fp32"}, metric="accuracy", config={"threads": 2, "restarts": 6, "batch": 1},
    machines={"local": {"cpu": "a CPU", "clocks_mhz": [1.0]}}, versions={"local": {"openvino": "2026.4"}},
    data={"name": "validation", "digest": "1" * 64, "count": 100}, order=(("original fp32", 0), ("small int8", 0)),
    rows=(
        row("original fp32", role="original", precision="fp32", latency_ms=SLOW,
            accuracy=accuracy("accuracy", np.ones(100), None, 0.01, None), precisions={"f32": 9}),
        row("small int8", role="shipped", latency_ms=FAST,
            speedup={"vs_original_fp32": speedup("original fp32", SLOW, FAST)},
            accuracy=accuracy("accuracy", np.arange(100) > 49.0, np.ones(100), 0.01, None),
            precisions={"f32": 1, "int8": 8}, unexpected=("head: MatMul in f32",),
            layers=(LayerRow(name="head", type="MatMul", precision="f32", time_us=None),)),
        row("rtx int8", status="built, not run", state="built, not run"),
        row("broken", status="failed", reason="killed by SIGSEGV"),
    ))


def test_json_and_back() -> None:
    record = json.loads(json.dumps(RECORD.to_json(), allow_nan=False))
    assert (record["format"], record["version"]) == ("compress.bench", 2)
    assert record["rows"][1]["latency_ms"]["p99"] is None
    assert record["rows"][1]["speedup"]["vs_original_fp32"] == {"against": "original fp32", "ratio": 4.0,
                                                                "interval": [4.0, 4.0]}
    assert BenchRecord.from_json(record) == RECORD


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 1}, "'compress.bench' version 1"), ({"format": "other"}, "says 'other'"),
    ({"rows": [{}]}, "damaged: .*rows")])
def test_another_record_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        BenchRecord.from_json({**RECORD.to_json(), **change})


def test_table() -> None:
    """Where the candidate never wins, Tango's interval of 50 lost in 100 is Wilson's of a half: 0.4038 to 0.5962."""
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(table(RECORD))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["original fp32", "openvino-cpu", "fp32", "1.50", "8.000 [8.000, 8.000]", "8.000", "", "100.00%", "", "0 of 9"],
        ["small int8", "openvino-cpu", "int8", "1.50", "2.000 [2.000, 2.000]", "n too small", "4.00x [4.00, 4.00]",
         "50.00%", "+50.00 [+40.38, +59.62]", "8 of 9"],
        [*[""] * 8, "over budget", ""],
        ["rtx int8", "openvino-cpu", "int8", "1.50", "built, not run", "", "", "", "", ""],
        ["broken", "openvino-cpu", "int8", "1.50", "failed", "", "", "", "", ""]]


def test_the_caption_says_what_failed() -> None:
    assert "broken failed: killed by SIGSEGV" in str(table(RECORD).caption)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_reach_95_percent(preset: str) -> None:
    assert median_interval([0.0] * PRESETS[preset].restarts)[2] >= 0.95


def test_settings_replace_the_presets() -> None:
    config = BenchConfig(preset="full", duration_s=0.5)
    assert config.plan() == Plan(restarts=12, warmup_s=1.0, duration_s=0.5, min_runs=200)
    assert replace(config, preset="quick").plan() == Plan(restarts=6, warmup_s=0.3, duration_s=0.5, min_runs=30)


@pytest.mark.parametrize(("settings", "message"), [
    ({"preset": "slow"}, "unknown preset 'slow'"), ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"threads": 0}, "threads must be at least 1"), ({"min_runs": -1}, "min_runs must be at least 1"),
    ({"duration_s": -0.1}, "duration_s must not be negative"),
    ({"warmup_s": float("nan")}, "warmup_s must not be negative"),
    ({"max_drop": -1}, "max_drop must not be negative"), ({"timeout_s": 0}, "timeout_s must be positive")])
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        BenchConfig(**settings)  # type: ignore[arg-type]
