
from typing import Any

import numpy as np

from compress.report.credit import credits
from compress.report.schema import validate


def test_the_steps_multiply_to_the_speed_up(example: dict[str, Any]) -> None:
    record = validate(example)
    assert record.bench is not None
    first, second = credits(record.bench)
    ratios = {
        row.name: row.speedup["vs_original_fp32"].ratio
        for row in record.bench.rows
        if "vs_original_fp32" in row.speedup
    }
    assert [step.cause for step in first.steps] == ["pruning", "bf16", "int8"]
    np.testing.assert_allclose(first.total, ratios["shipped int8, openvino-cpu"])
    np.testing.assert_allclose(
        first.steps[1].gain, ratios["shipped bf16, openvino-cpu"] / ratios["shipped fp32, openvino-cpu"]
    )
    assert [step.cause for step in second.steps] == ["pruning", "int8"]  # ONNX Runtime's CPU has no half kernels
    assert sum(int(share.removesuffix(" %")) for share in first.shares) in range(99, 102)


def test_a_step_without_its_engine_is_merged_into_the_next(example: dict[str, Any]) -> None:
    example["bench"]["rows"] = [
        row for row in example["bench"]["rows"] if row["name"] != "shipped fp32, onnxruntime-cpu"
    ]
    record = validate(example)
    assert record.bench is not None
    assert [step.cause for step in credits(record.bench)[1].steps] == ["pruning + int8"]


def test_a_step_that_made_it_slower_has_a_negative_share(example: dict[str, Any]) -> None:
    slow = next(row for row in example["bench"]["rows"] if row["name"] == "shipped bf16, openvino-cpu")
    slow["speedup"]["vs_original_fp32"]["ratio"] = 1.0
    record = validate(example)
    assert record.bench is not None
    credit = credits(record.bench)[0]
    assert credit.steps[1].gain < 1
    assert credit.shares[1].startswith("−")


def test_without_the_original_there_is_no_credit(example: dict[str, Any]) -> None:
    example["bench"]["rows"] = [row for row in example["bench"]["rows"] if row["role"] != "original"]
    record = validate(example)
    assert record.bench is not None
    assert credits(record.bench) == ()


def test_a_whole_that_is_no_difference_has_no_shares_and_invalid_times_are_told(example: dict[str, Any]) -> None:
    row = next(row for row in example["bench"]["rows"] if row["name"] == "shipped int8, openvino-cpu")
    row["speedup"]["vs_original_fp32"]["different"] = False
    other = next(row for row in example["bench"]["rows"] if row["name"] == "original fp32, onnxruntime-cpu")
    other["marks"] = [{"kind": "INVALID", "reason": "throttled"}]
    record = validate(example)
    assert record.bench is not None
    first, second = credits(record.bench)
    assert (first.different, first.invalid, set(first.shares)) == (False, False, {"–"})
    assert second.invalid
