
import copy
from typing import Any

import pytest

from compress.errors import CompressError
from compress.report import judge


def _with_drop(bench: dict[str, Any], low: float, points: float, high: float) -> dict[str, Any]:
    bench = copy.deepcopy(bench)
    for row in bench["rows"]:
        if row["role"] == "shipped" and row["accuracy"]:
            row["accuracy"]["drop"].update(points=points, interval=[low, high])
    return bench


def test_the_sentence_names_gain_cost_size_and_engine(example: dict[str, Any]) -> None:
    assert judge(example["bench"], 0.01) == {
        "max_drop": 0.01,
        "within": True,
        "sentence": "3.6× faster than the original's fp32 engine at −0.3 points [−0.7, +0.2], 6.2× smaller "
        "(int8 on openvino-cpu).",
    }


@pytest.mark.parametrize(
    ("low", "points", "high", "within"),
    [
        (-0.5, 0.2, 0.9, True),
        (0.4, 0.9, 1.4, "undecidable"),
        (1.1, 1.6, 2.1, False),
        (0.5, 0.8, 1.0, True),
    ],
)
def test_the_budget_is_decided_only_by_the_whole_interval(
    example: dict[str, Any],
    low: float,
    points: float,
    high: float,
    within: Any,
) -> None:
    assert judge(_with_drop(example["bench"], low, points, high), 0.01)["within"] == within


def test_without_a_budget_nothing_is_decided(example: dict[str, Any]) -> None:
    assert judge(example["bench"])["within"] is None


def test_the_fastest_engine_inside_the_budget_is_told_before_a_faster_one_outside(example: dict[str, Any]) -> None:
    bench = copy.deepcopy(example["bench"])
    fast = next(row for row in bench["rows"] if row["name"] == "shipped int8, openvino-cpu")
    fast["accuracy"]["drop"].update(points=4.0, interval=[3.0, 5.0])
    assert "int8 on onnxruntime-cpu" in judge(bench, 0.01)["sentence"]


def test_a_slower_and_larger_engine_is_said_to_be(example: dict[str, Any]) -> None:
    bench = copy.deepcopy(example["bench"])
    bench["rows"] = [
        row for row in bench["rows"] if row["target"] == "openvino-cpu" and row["precision"] in ("fp32", "int8")
    ]
    bench["rows"][-1]["speedup"]["vs_original_fp32"]["ratio"] = 0.5
    bench["rows"][-1]["size_bytes"] = 2 * bench["rows"][0]["size_bytes"]
    sentence = judge(bench)["sentence"]
    assert sentence.startswith("2.0× slower than the original's fp32 engine")
    assert "2.0× larger" in sentence


def test_what_was_not_run_is_not_praised(example: dict[str, Any]) -> None:
    bench = {**example["bench"], "rows": [row for row in example["bench"]["rows"] if row["target"] == "rtx"]}
    assert judge(bench)["sentence"] == "No engine of a compressed model was run here."
    alone = copy.deepcopy(example["bench"])
    alone["rows"] = [{**row, "speedup": {}} for row in alone["rows"] if row["role"] == "shipped"]
    assert "no speed-up can be given" in judge(alone)["sentence"]


def test_another_record_is_refused() -> None:
    with pytest.raises(CompressError, match=r"compress\.bench"):
        judge({"format": "compress.parity"})


def test_invalid_times_are_not_the_headline_unless_there_are_no_others(example: dict[str, Any]) -> None:
    bench = copy.deepcopy(example["bench"])
    mark = {"kind": "INVALID", "reason": "throttled"}
    openvino, onnxruntime = (row for row in bench["rows"] if row["role"] == "shipped" and row["latency_ms"])
    openvino["marks"] = [mark]
    assert "(int8 on onnxruntime-cpu)" in judge(bench)["sentence"]
    onnxruntime["status"] = "partial"
    assert judge(bench)["sentence"].endswith("(int8 on openvino-cpu). Its times are INVALID: throttled.")


def test_a_gain_over_invalid_times_is_told_as_such(example: dict[str, Any]) -> None:
    bench = copy.deepcopy(example["bench"])
    original = next(row for row in bench["rows"] if row["name"] == "original fp32, openvino-cpu")
    original["marks"] = [{"kind": "INVALID", "reason": "throttled"}]
    assert judge(bench)["sentence"].endswith("(int8 on openvino-cpu). The original's times are INVALID: throttled.")


def test_a_gain_that_is_no_difference_is_not_called_one(example: dict[str, Any]) -> None:
    bench = copy.deepcopy(example["bench"])
    row = next(row for row in bench["rows"] if row["name"] == "shipped int8, openvino-cpu")
    row["speedup"]["vs_original_fp32"].update(ratio=1.02, interval=[0.97, 1.06], different=False)
    assert judge(bench)["sentence"].startswith("No difference in speed seen (1.0×) from the original's fp32 engine at")
