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
from compress.bench.record import BenchRow, EmulatedParity, Generation, LayerRow, Mark
from compress.errors import CompressError
from compress.intervals import median_interval
from compress.metrics import get_metric

SLOW, FAST = latency([[8_000_000] * 120] * 6), latency([[2_000_000] * 99] * 6)


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
            accuracy=accuracy(get_metric("accuracy"), np.ones(100), None, 0.01, None), precisions={"f32": 9}),
        row("small int8", role="shipped", latency_ms=FAST,
            speedup={"vs_original_fp32": speedup("original fp32", SLOW, FAST)},
            accuracy=accuracy(get_metric("accuracy"), np.arange(100) > 49.0, np.ones(100), 0.01, None),
            precisions={"f32": 1, "int8": 8}, unexpected=("head: MatMul in f32",),
            layers=(LayerRow(name="head", type="MatMul", precision="f32", time_us=None),),
            marks=(Mark(kind="UNSTABLE", reason="the interval is wide"),)),
        row("rtx int8", status="built, not run", state="built, not run"),
        row("broken", status="failed", reason="killed by SIGSEGV"),
    ))


def test_json_and_back() -> None:
    record = json.loads(json.dumps(RECORD.to_json(), allow_nan=False))
    assert (record["format"], record["version"]) == ("compress.bench", 2)
    assert record["rows"][1]["latency_ms"]["p99"] is None
    assert record["rows"][1]["speedup"]["vs_original_fp32"] == {"against": "original fp32", "ratio": 4.0,
                                                                "interval": [4.0, 4.0], "different": True}
    assert BenchRecord.from_json(record) == RECORD


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 1}, "'compress.bench' version 1"), ({"format": "other"}, "says 'other'"),
    ({"rows": [{}]}, "damaged: .*rows")])
def test_another_record_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        BenchRecord.from_json({**RECORD.to_json(), **change})


def shown(record: BenchRecord) -> list[list[str]]:
    console = Console(width=260, record=True, file=io.StringIO())
    console.print(table(record))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    return [[cell.strip() for cell in line] for line in lines]


def test_table() -> None:
    """Where the candidate never wins, Tango's interval of 50 lost in 100 is Wilson's of a half: 0.4038 to 0.5962."""
    assert shown(RECORD) == [
        ["original fp32", "1.50", "8.000 [8.000, 8.000]", "8.000", "8.000", "", "100.00%", "", "0 of 9"],
        ["openvino-cpu", *[""] * 8],
        ["small int8", "1.50", "2.000 [2.000, 2.000]", "2.000", "n too small", "4.00x [4.00, 4.00]", "50.00%",
         "+50.00 [+40.38, +59.62]", "8 of 9"],
        ["openvino-cpu", *[""] * 6, "over budget", ""],
        ["UNSTABLE", *[""] * 8],
        ["rtx int8", "1.50", "built, not run", *[""] * 6],
        ["openvino-cpu", *[""] * 8],
        ["broken", "1.50", "failed", *[""] * 6],
        ["int8 on openvino-cpu", *[""] * 8]]


def test_a_metric_that_is_no_share_has_its_own_unit() -> None:
    """A squared error of 4, and one of 4.5: above 0 is worse."""
    mse = get_metric("mse")
    before, after = np.full(100, 4.0), np.full(100, 4.5)
    rows = (row("original", latency_ms=SLOW, accuracy=accuracy(mse, before, None, 0.1, None)),
            row("small", latency_ms=FAST, accuracy=accuracy(mse, after, before, 0.1, None)))
    record = replace(RECORD, metric="mse", rows=rows)
    assert [column.header for column in table(record).columns][6:8] == ["mse", "drop"]
    cells = [list(column.cells) for column in table(record).columns][6:8]
    assert [str(cell) for cell in cells[0]] == ["4", "4.5"]
    assert str(cells[1][1]) == "+0.5 [+0.5, +0.5]\nover budget"


def test_an_error_rate_is_told_in_points() -> None:
    wer = get_metric("wer")
    before, after = np.tile([1.0, 10.0], (50, 1)), np.tile([1.2, 10.0], (50, 1))
    record = replace(RECORD, metric="wer", rows=(
        row("small", latency_ms=FAST, accuracy=accuracy(wer, after, before, 0.05, None)),))
    cells = [str(next(iter(column.cells))) for column in table(record).columns][6:8]
    assert cells == ["12.00%", "+2.00 [+2.00, +2.00]\nwithin budget"]
    assert BenchRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_caption_says_what_failed_and_what_is_doubtful() -> None:
    lines = str(table(RECORD).caption).splitlines()
    assert "broken: failed, killed by SIGSEGV" in lines
    assert "small int8: UNSTABLE, the interval is wide" in lines


def test_what_was_emulated_has_no_time() -> None:
    scores = accuracy(get_metric("accuracy"), np.ones(100), None, 0.01, None)
    emulated = row("rpi5 int8", status="emulated", accuracy=scores,
                   precisions={"int8": 9}, emulated_parity=EmulatedParity(
                       largest_difference=0.125, largest_output=8.0, same_answers=0.99, samples=100))
    record = replace(RECORD, rows=(emulated,))
    assert shown(record)[0][2:] == ["emulated, not a measurement", "", "", "", "100.00%", "", "9 of 9"]
    assert ("rpi5 int8: under emulation 99.00% of 100 answers and outputs within 0.125 of this machine's, "
            "whose largest is 8") in str(table(record).caption)


def test_the_caption_says_how_an_answer_comes() -> None:
    told = Generation(tokens=9, first_token_ms=12.5, tokens_per_s=80.0)
    record = replace(RECORD, rows=(row("captioner int8", latency_ms=FAST, generation=told),))
    assert "captioner int8: the first token after 12.5 ms, then 80 tokens/s (9)" in str(table(record).caption)
    assert BenchRecord.from_json(json.loads(json.dumps(record.to_json()))).rows[0].generation == told


def test_what_was_cut_short_says_how_much_there_is() -> None:
    lost = row("pi int8", status="device lost", latency_ms=FAST, reason="the link was closed")
    record = replace(RECORD, rows=(lost,), complete=False)
    assert [line[2] for line in shown(record)] == ["2.000 [2.000, 2.000]", "device lost, 6 rounds"]
    assert str(table(record).title).endswith(": incomplete")


def test_a_short_time_has_three_digits() -> None:
    quick = latency([[11_340 + run % 3 for run in range(99)]] * 6)
    assert shown(replace(RECORD, rows=(row("quick", latency_ms=quick),)))[0][2:5] == [
        "0.0113 [0.0113, 0.0113]", "0.0113", "n too small"]


def test_no_difference_is_said() -> None:
    """Six rounds in which the second is slower in five and faster in one; and three, which say nothing."""
    for times, said in (((9, 9, 9, 9, 9, 7), "no difference seen"), ((9, 9, 9), "too few restarts to tell")):
        other = latency([[ms * 1_000_000] * 99 for ms in times])
        slower = row("b", latency_ms=other, speedup={"vs_original_fp32": speedup("a", SLOW, other)})
        assert shown(replace(RECORD, rows=(slower,)))[1][5] == said


def test_offline_gives_samples_a_second() -> None:
    record = replace(RECORD, config={"scenario": "offline", "batch": 64}, rows=(
        row("b", latency_ms=FAST, throughput_per_s=32000.0, scenario="offline", batch=64),))
    assert shown(record)[0][2:4] == ["32000.0", "2.000 [2.000, 2.000]"]
    assert str(table(record).title) == "offline, batch 64"


def test_names_and_reasons_are_text() -> None:
    """They may be a file's or a device's: neither markup nor what moves a cursor."""
    hostile = row("\x1b[2J[red]b[/red]", status="failed", reason="\x1b]0;title\x07[bold]no[/bold]")
    file = io.StringIO()
    Console(width=260, file=file).print(table(replace(RECORD, rows=(hostile,))))
    text = file.getvalue()
    assert "?[2J[red]b[/red]" in text
    assert "?]0;title?[bold]no[/bold]" in text
    assert not set(text) & {"\x1b", "\x07"}


def test_without_an_original_the_caption_promises_no_comparison() -> None:
    record = replace(RECORD, rows=(row("small int8", latency_ms=FAST),), config={"threads": 1, "restarts": 1})
    assert str(table(record).caption).splitlines()[0] == (
        "no engine of the original model beside them: no drop and no speed-up")
    assert str(table(record).title) == "single stream, 1 thread, 1 restart"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_reach_95_percent(preset: str) -> None:
    assert median_interval([0.0] * PRESETS[preset].restarts)[2] >= 0.95


def test_settings_replace_the_presets() -> None:
    config = BenchConfig(preset="full", duration_s=0.5)
    assert config.plan() == Plan(restarts=12, warmup_s=1.0, duration_s=0.5, min_runs=200)
    assert replace(config, preset="quick").plan() == Plan(restarts=8, warmup_s=0.3, duration_s=0.5, min_runs=30)


@pytest.mark.parametrize(("settings", "message"), [
    ({"preset": "slow"}, "unknown preset 'slow'"), ({"scenario": "server"}, "unknown scenario 'server'"),
    ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"threads": 0}, "threads must be at least 1"), ({"min_runs": -1}, "min_runs must be at least 1"),
    ({"duration_s": -0.1}, "duration_s must be finite and not negative"),
    ({"duration_s": float("inf")}, "duration_s must be finite and not negative, got inf"),
    ({"warmup_s": float("nan")}, "warmup_s must be finite and not negative"),
    ({"max_drop": -1}, "max_drop must be finite and not negative"),
    ({"timeout_s": 0}, "timeout_s must be finite and positive"),
    ({"timeout_s": 1.3}, "timeout_s must be more than the 1.3 s of warm-up and timing, got 1.3"),
    ({"timeout_s": 60.0, "duration_s": 90.0}, "timeout_s must be more than the 90.3 s of warm-up and timing, got 60")])
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        BenchConfig(**settings)  # type: ignore[arg-type]
