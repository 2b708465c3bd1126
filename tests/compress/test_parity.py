"""Parity: the figures by hand, the flags, and the refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from compress.errors import CompressError
from compress.parity import ParityResult, ParityStep, joined, parity, table
from runtimes.engine import Precision
from runtimes.spec import Feed

REFERENCE = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
FEED = {"x": np.zeros((2, 1), np.float32)}


def step(
    name: str, value: np.ndarray, precision: Precision = "fp32", after: str | None = None, output: str = "output"
) -> ParityStep:
    return ParityStep(name=name, kind="torch", precision=precision, run=lambda feed: {output: value}, after=after)


def ladder(*values: np.ndarray, precision: Precision = "fp32") -> ParityResult:
    steps = [step("torch", values[0])] + [step(f"step {i}", v, precision) for i, v in enumerate(values[1:], 1)]
    return parity(steps, [FEED])


def test_figures_by_hand() -> None:
    """ref = (3, 4, 1, 0), got = (3, 4, 0, 1): squares 26 and 26, product 25, error (0, 0, 1, 1) with square 2."""
    result = ladder(REFERENCE, np.array([[3.0, 4.0], [0.0, 1.0]], np.float32))
    found = result.steps[1].from_reference["output"]
    assert found.max_abs == 1.0
    assert found.cosine == pytest.approx(25 / 26, abs=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10(26 / 2), abs=1e-9)
    assert (found.agreement, found.answers, found.exact) == (0.5, 2, False)


def test_equal_outputs_are_exact_and_have_no_sqnr() -> None:
    found = ladder(REFERENCE, REFERENCE).steps[1].from_reference["output"]
    assert (found.max_abs, found.cosine, found.sqnr_db, found.exact, found.agreement) == (0.0, 1.0, None, True, 1.0)


def test_zeros_have_no_direction() -> None:
    found = ladder(np.zeros((2, 2)), REFERENCE).steps[1].from_reference["output"]
    assert (found.cosine, found.sqnr_db, found.exact) == (0.0, None, False)


def test_sums_run_over_all_feeds() -> None:
    """Two feeds of one row each are the same as one feed of two rows."""
    rows = {0: ([3.0, 4.0], [3.0, 4.5]), 1: ([1.0, 0.0], [0.5, 0.0])}

    def run(column: int) -> Callable[[Feed], dict[str, np.ndarray]]:
        return lambda feed: {"output": np.array([rows[int(feed["x"][0, 0])][column]])}

    steps = [ParityStep(name=name, kind="torch", precision="fp32", run=run(column))
             for column, name in enumerate(["torch", "onnx"])]
    done: list[int] = []
    found = parity(steps, [{"x": np.array([[i]])} for i in (0, 1)], progress=done.append)
    assert (found.feeds, found.samples, done) == (2, 2, [1, 2])
    difference = found.steps[1].from_reference["output"]
    assert difference.sqnr_db == pytest.approx(10 * math.log10(26 / 0.5), abs=1e-9)
    assert difference.cosine == pytest.approx((9 + 18 + 0.5) / math.sqrt(26 * (9 + 20.25 + 0.25)), abs=1e-12)


def test_each_step_is_measured_from_the_reference_and_from_the_one_it_was_made_from() -> None:
    steps = [step("torch", REFERENCE), step("quantized", REFERENCE + 0.1, "int8"),
             step("onnx", REFERENCE + 0.3, "int8"),
             step("openvino", REFERENCE + 0.4, "int8"), step("onnxruntime", REFERENCE + 0.5, "int8", after="onnx")]
    result = parity(steps, [FEED])
    assert [s.after for s in result.steps] == [None, "torch", "quantized", "onnx", "onnx"]
    assert [round(s.from_reference["output"].max_abs or 0, 4) for s in result.steps[1:]] == [0.1, 0.3, 0.4, 0.5]
    assert [round(s.from_previous["output"].max_abs or 0, 4) for s in result.steps[1:]] == [0.1, 0.2, 0.1, 0.2]


def logits(disagreeing: int) -> np.ndarray:
    """200 answers "first", of which some are turned to "second"; the cosine stays near 1."""
    values = np.tile(np.array([1.0, 0.999]), (200, 1))
    values[:disagreeing, 1] = 1.001
    return values


@pytest.mark.parametrize(("disagreeing", "flagged"), [(0, False), (2, False), (3, True)])
def test_more_than_one_percent_of_other_answers_is_flagged(disagreeing: int, flagged: bool) -> None:
    result = ladder(logits(0), logits(disagreeing))
    assert result.passed is not flagged
    flag = f"output 'output' against 'torch': {disagreeing} of 200 answers differ, expected at most 1%"
    assert result.steps[1].flags == ((flag,) if flagged else ())


@pytest.mark.parametrize(("precision", "cosine", "flagged"), [
    ("fp32", 0.9995, False), ("fp32", 0.998, True), ("bf16", 0.997, False), ("bf16", 0.99, True)])
def test_cosine_limits_follow_the_precision(precision: Precision, cosine: float, flagged: bool) -> None:
    turned = np.array([[cosine, math.sqrt(1 - cosine**2)]])
    assert ladder(np.array([[1.0, 0.0]]), turned, precision=precision).passed is not flagged


def test_quantizing_may_cost_more_than_converting() -> None:
    """A cosine of 0.97 is what taking precision away may do, and what an int8 engine may not do to its int8 ONNX."""
    straight, turned = np.array([[1.0, 0.0]]), np.array([[0.97, math.sqrt(1 - 0.97**2)]])
    assert ladder(straight, turned, precision="int8").passed
    result = parity([step("torch", straight), step("onnx", straight, "int8"), step("engine", turned, "int8")], [FEED])
    assert result.steps[1].flags == ()
    assert result.steps[2].flags == ("output 'output' against 'onnx': cosine 0.9700, expected at least 0.99",)


def test_an_error_below_the_noise_floor_is_not_flagged() -> None:
    """Next to an output of 1, an error of 1e-7 turns a second output of nearly zero anywhere, in fp32 as in int8."""
    tiny, turned = np.array([[1e-8, 0.0]]), np.array([[0.0, 1e-8]])
    fp32 = step("onnx", np.array([[1e-8, 2e-8]]))
    alone = parity([step("torch", tiny), step("engine", turned, "int8")], [FEED])
    beside = parity([step("torch", tiny), fp32, step("engine", turned, "int8", after="torch")], [FEED])
    assert alone.steps[1].flags != ()
    assert beside.steps[2].flags == ()
    assert beside.noise_floor == {"output": 2e-8}


def test_values_that_are_not_finite_are_flagged() -> None:
    result = ladder(REFERENCE, np.array([[np.nan, 4.0], [np.inf, 0.0]]), precision="fp16")
    found = result.steps[1].from_reference["output"]
    assert (found.max_abs, found.cosine, found.not_finite) == (None, None, 2)
    assert result.steps[1].flags == ("output 'output' against 'torch': 2 values are not finite",)
    json.dumps(result.to_json(), allow_nan=False)


def test_only_the_named_outputs_are_answers() -> None:
    steps = [step("torch", REFERENCE), step("onnx", REFERENCE)]
    assert parity(steps, [FEED], answers=[]).steps[1].from_reference["output"].agreement is None


@pytest.mark.parametrize(("shape", "answers"), [((4,), 0), ((4, 3), 4), ((4, 2, 3), 8), ((4, 2, 3, 5), 0)])
def test_a_row_of_scores_has_an_answer_and_a_map_has_none(shape: tuple[int, ...], answers: int) -> None:
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert ladder(value, value).steps[1].from_reference["output"].answers == answers


def test_record_and_table() -> None:
    result = ladder(REFERENCE, REFERENCE + 0.001)
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (record["format"], record["version"], record["passed"], record["samples"]) == ("compress.parity", 1, True, 2)
    assert record["steps"][1]["from_previous"]["output"]["agreement"] == 1.0
    assert ParityResult.from_json(record) == result
    assert list(table(result).columns[0].cells) == ["step 1"]


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 2}, "'compress.parity' version 2"), ({"steps": [{}]}, "damaged: .*steps")])
def test_another_record_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        ParityResult.from_json({**ladder(REFERENCE, REFERENCE).to_json(), **change})


@pytest.mark.parametrize(("steps", "message"), [
    ([step("torch", REFERENCE)], r"got \['torch'\]: give at least two"),
    ([step("a", REFERENCE), step("a", REFERENCE)], "'a' is listed twice"),
    ([step("a", REFERENCE), step("b", REFERENCE, after="c")], "'b' is after 'c'"),
    ([step("a", REFERENCE), step("b", REFERENCE, output="other")], r"'b' has the outputs \['other'\]"),
    ([step("a", REFERENCE), step("b", REFERENCE[:1])], r"'b': output 'output' has shape \(1, 2\), \(2, 2\) in 'a'"),
])
def test_refusals(steps: list[ParityStep], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        parity(steps, [FEED])


def test_no_feeds() -> None:
    none: list[Mapping[str, np.ndarray]] = []
    with pytest.raises(CompressError, match="at least one feed"):
        parity([step("a", REFERENCE), step("b", REFERENCE)], none)


def test_integers_are_answers_of_a_sample() -> None:
    """Captions, of which one of four has another word; a cosine of token ids would say nothing."""
    words, other = np.array([[3, 4], [3, 5], [6, 2], [7, 2]]), np.array([[3, 4], [3, 5], [6, 2], [8, 2]])
    found = ladder(words, other).steps[1].from_reference["output"]
    assert (found.agreement, found.answers, found.exact) == (0.75, 4, False)
    assert (found.max_abs, found.cosine, found.sqnr_db) == (None, None, None)
    assert ladder(words, words).steps[1].from_reference["output"].exact
    assert ladder(words, other).passed      # one answer always may differ


@pytest.mark.parametrize(("precision", "flagged"), [("fp32", True), ("int8", False), ("bf16", False)])
def test_tokens_are_held_to_the_limits_in_fp32_alone(precision: Precision, flagged: bool) -> None:
    words = np.arange(12).reshape(4, 3)
    result = ladder(words, words + np.array([[0], [0], [1], [1]]), precision=precision)
    flag = "output 'output' against 'torch': 2 of 4 answers differ, expected at most 1%"
    assert result.steps[1].flags == ((flag,) if flagged else ())


def test_results_of_several_graphs_are_joined() -> None:
    """Each has its own feeds, outputs and flags; the steps are the same."""
    def of(output: str, value: float) -> ParityResult:
        steps = [ParityStep(name=name, kind=name, precision="fp32", run=lambda feed, v=v: {output: np.full((1, 2), v)})
                 for name, v in (("torch", 1.0), ("onnx", value))]
        return parity(steps, [FEED, FEED])

    encoder, decoder = of("encoder.memory", 1.5), of("decoder.logits", -1.0)
    whole = joined([encoder, decoder], feeds=2, samples=7)
    assert (whole.feeds, whole.samples, [step.name for step in whole.steps]) == (2, 7, ["torch", "onnx"])
    onnx = whole.steps[1]
    assert {name: found.max_abs for name, found in onnx.from_reference.items()} == {
        "encoder.memory": 0.5, "decoder.logits": 2.0}
    assert onnx.from_previous == onnx.from_reference
    assert onnx.flags == decoder.steps[1].flags != ()
    assert whole.noise_floor == {"encoder.memory": 0.5, "decoder.logits": 2.0}
