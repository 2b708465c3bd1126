import copy
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.report.schema import read_record, validate

BARE = {"format": "compress.report", "version": 1, "name": "m"}


def test_the_example_is_valid_and_typed(example: dict[str, Any]) -> None:
    record = validate(example)
    assert record.model is not None
    assert record.model.components["fusion"].macs == 9_800_000
    assert record.bench is not None
    assert record.bench.rows[0].latency_ms is not None
    assert record.parity is not None
    assert record.parity.passed


def test_every_section_but_the_name_may_be_left_out(example: dict[str, Any]) -> None:
    assert validate(BARE).bench is None
    for key in set(example) - set(BARE):
        validate({**BARE, key: example[key]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a 'compress.report' record"),
        ({"version": 2}, "has format version 2"),
        ({"name": None}, r"`\$.name`"),
        ({"benhc": {}}, "unknown field `benhc`"),
        ({"model": {"components": {"a": {"parameters": -1, "macs": 0, "size_bytes": 0}}}}, r"\$.model.components"),
        ({"model": {"inputs": [{"name": "image"}]}}, r"\$.model: not a tensor spec"),
        ({"verdict": {"max_drop": float("nan")}}, "not a valid report"),
        ({"data": {"train": {"count": "9", "digest": ""}}}, r"\$.data.train.count"),
        (
            {"stages": [{"stage": "prune", "summary": {"macs_before": 3}}]},
            r"\$.stages\[0\].summary of stage 'prune'.*macs_after",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        validate({**BARE, **change})


def test_a_latency_of_nothing_is_refused(example: dict[str, Any]) -> None:
    record = copy.deepcopy(example)
    record["bench"]["rows"][0]["latency_ms"]["p50"] = 0
    with pytest.raises(CompressError, match=r"original fp32, openvino-cpu.*p50"):
        validate(record)


def test_a_stage_nobody_knows_may_tell_anything() -> None:
    assert validate({**BARE, "stages": [{"stage": "mine", "summary": {"x": [1]}}]}).stages is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read"),
        (b"{", "is not JSON"),
        (b"[]", "is not a 'compress.report' record"),
        (b'{"format": "compress.report", "version": 3}', "report.json has format version 3"),
    ],
)
def test_files_that_are_no_record(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "report.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CompressError, match=message):
        read_record(path)


def test_a_bench_of_another_version_says_to_run_it_again(example: dict[str, Any]) -> None:
    example["bench"]["version"] = 1
    with pytest.raises(CompressError, match="holds a bench of format version 1 and this software reads version 2: run"):
        validate(example)
