from typing import Any

from compress.report import coverage
from compress.report.schema import validate


def test_findings_of_two_schemes_are_told_once(everything: dict[str, Any]) -> None:
    record = validate(everything)
    assert sum(stage.stage == "quantize" for stage in record.stages or ()) == 2
    assert coverage.findings(record) == [
        "dimension 'length' is 4 to 11, declared 1 to 32", "sample 17 of 'calibration' reaches 1e+06 in <b>"]
    assert [one.samples for one in coverage.samples(record)] == [300]


def test_what_is_clipped_most_in_each_component(everything: dict[str, Any]) -> None:
    ((name, (one, clipped)),) = coverage.components(validate(everything)).items()
    assert (name, one.tensors, one.still, clipped) == ("image_encoder", 18, 2, 0.02)


def test_a_record_without_coverage(example: dict[str, Any]) -> None:
    record = validate(example)
    assert (coverage.findings(record), coverage.samples(record), coverage.components(record)) == ([], [], {})


def test_many_lines_are_counted() -> None:
    assert coverage.told(["a"] * 8) == ["a"] * 8
    assert coverage.told(["a"] * 11) == ["a"] * 8 + ["and 3 more in the report"]
