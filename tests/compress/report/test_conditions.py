
from typing import Any

import pytest

from compress.bench.record import BenchRecord, BenchRow, EmulatedParity, Generation, Mark
from compress.report import conditions
from compress.report.schema import validate


@pytest.fixture
def bench(everything: dict[str, Any]) -> BenchRecord:
    found = validate(everything).bench
    assert found is not None
    return found


def row(bench: BenchRecord, name: str) -> BenchRow:
    return next(row for row in bench.rows if row.name == name)


def told(row: BenchRow) -> list[tuple[str, str, str]]:
    return [(note.level, note.label, note.text) for note in conditions.notes(row)]


def test_the_worst_is_said_first(bench: BenchRecord) -> None:
    assert told(row(bench, "shipped int8, onnxruntime-cpu")) == [
        ("bad", "partial", "interrupted; 6 rounds were timed"),
        ("bad", "INVALID", "other processes took 21% of the cores' time"),
        ("open", "UNSTABLE", "the interval of p50 reaches from -2.5% to +10.1% of it"),
    ]
    assert told(row(bench, "original fp32, openvino-cpu")) == []


def test_a_lost_device_and_an_emulated_one(bench: BenchRecord) -> None:
    lost, emulated = row(bench, "shipped int8, jetson-orin-nano"), row(bench, "shipped int8, rpi5")
    assert told(lost)[0] == (
        "bad", "device lost: partial", "jetson-orin-nano: nothing came for 15 s; 2 rounds were timed")  # fmt: skip
    assert conditions.status(emulated) == "emulated, not a measurement"
    assert told(emulated) == [
        ("plain", "parity", "against this machine over 2,160 samples: 99.95 % of the answers are equal, "
         "outputs differ by at most 0.0031, of 14.2")]  # fmt: skip
    assert [conditions.status(row(bench, name)) for name in ("shipped int8, rtx", "original fp32, openvino-cpu")] == [
        "built, not run", None]  # fmt: skip


def test_before_the_first_round(bench: BenchRecord) -> None:
    import dataclasses

    lost = dataclasses.replace(row(bench, "shipped int8, rtx"), status="device lost", reason=None,
                               marks=(Mark(kind="UNSTABLE", reason="r"),),
                               emulated_parity=EmulatedParity(largest_difference=1.5, largest_output=20.0,
                                                              same_answers=None, samples=3))  # fmt: skip
    assert told(lost) == [
        ("bad", "device lost: partial", "no round was timed"), ("open", "UNSTABLE", "r"),
        ("plain", "parity", "against this machine over 3 samples: outputs differ by at most 1.5, of 20.0")]  # fmt: skip


def test_how_an_answer_comes_is_no_doubt(bench: BenchRecord) -> None:
    import dataclasses

    told_of = dataclasses.replace(row(bench, "original fp32, openvino-cpu"),
                                  generation=Generation(tokens=9, first_token_ms=12.5, tokens_per_s=80.0))
    assert told(told_of) == [("plain", "answer", "the first token after 12.5 ms, then 80 tokens/s (9)")]
    assert conditions.doubts(told_of) == ()
    assert len(conditions.doubts(row(bench, "shipped int8, onnxruntime-cpu"))) == 3


def test_percentiles(bench: BenchRecord) -> None:
    found = row(bench, "shipped int8, openvino-cpu")
    assert [conditions.at_most(found, name) for name in ("p90", "p95", "p99")] == ["1.96", "≤ 1.52", "n too small"]


def test_what_could_not_be_read_is_never_a_zero(bench: BenchRecord) -> None:
    rows = conditions.with_conditions(bench)
    columns = dict(conditions.columns(rows))
    names = [row.name for row in rows]
    read, unread = names.index("shipped int8, openvino-cpu"), names.index("shipped int8, onnxruntime-cpu")
    assert {name: values[read] for name, values in columns.items()} == {
        "Power mode": "not read", "Clock": "3,100 → 3,050 MHz", "Hottest": "48 → 61 °C", "Throttled": "no",
        "Loop slower": "1.2 %", "Others' load": "1.1 %", "Stolen": "0.0 %",
        "Energy, inference": "16.9 mJ (RAPL package, 14.2 W)", "Memory left": "5.10 GB",
    }  # fmt: skip
    assert {name: values[unread] for name, values in columns.items()} == {
        **dict.fromkeys(columns, "not read"), "Loop slower": "9.4 %", "Others' load": "21.0 %",
        "Energy, inference": "not measured",
    }  # fmt: skip


def test_rows_by_target_and_machine(bench: BenchRecord, example: dict[str, Any]) -> None:
    assert [(group.target, group.machine, len(group.rows)) for group in conditions.groups(bench)] == [
        ("openvino-cpu", "local", 5), ("onnxruntime-cpu", "local", 3), ("rtx", None, 2),
        ("jetson-orin-nano", "jetson-orin-nano", 1), ("rpi5", "rpi5, emulated", 1)]  # fmt: skip
    assert conditions.groups(None) == ()
