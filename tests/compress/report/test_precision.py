"""The views of sensitivity and budget: what is told, and that the page and the terminal show it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from compress.errors import CompressError
from compress.report import precision, show
from compress.report.page import render
from compress.report.schema import Record, validate


@pytest.fixture
def record(example: dict[str, Any], sensitivity_stage: dict[str, Any], budget_stage: dict[str, Any]) -> dict[str, Any]:
    example["stages"] += [budget_stage, sensitivity_stage]
    return example


@pytest.fixture
def checked(record: dict[str, Any]) -> Record:
    return validate(record)


def test_what_is_told_of_an_effect(checked: Record) -> None:
    ((_, found),) = precision.sensitivities(checked)
    parts = {part.name: part for part in found.parts}
    assert precision.decibels(parts["see"].int8) == "30.0 dB"
    assert precision.decibels(parts["spare"].int8) == "no difference"
    assert precision.decibels(None) == "–"
    assert precision.change(parts["see"].int8, "accuracy") == "−1.2 points [−2.0, −0.8]"
    assert precision.change(parts["see"].int8, None) == "–"
    assert list(precision.kinds(found)) == ["component", "layer"]
    assert [part.name for part in precision.noisiest(precision.kinds(found)["layer"])] == ["see.0", "read.0", "spare"]


def test_bars_span_sixty_decibels(checked: Record) -> None:
    ((_, found),) = precision.sensitivities(checked)
    see, read = precision.kinds(found)["component"]
    assert precision.share(see.int8, [see, read]) == 1.0
    assert precision.share(read.int8, [see, read]) == pytest.approx(1 - 20 / 60)      # a hundredth of the noise
    assert precision.share(None, [see, read]) == 0.0


def test_the_noise_plot_has_the_finest_parts_that_make_noise(checked: Record) -> None:
    ((_, found),) = precision.sensitivities(checked)
    plot = precision.noise_plot(found)
    assert plot is not None
    assert [(marker.point.label, marker.point.x, marker.point.y) for marker in plot.markers] == [
        ("see.0", 8e-4, -1.0), ("read.0", 1e-5, 0.0)]  # fmt: skip
    assert len({marker.point.series for marker in plot.markers}) == 2      # a colour for each modality


def test_the_curve_has_what_was_measured_the_guesses_and_the_budget(checked: Record) -> None:
    ((_, found),) = precision.budgets(checked)
    (curve,) = precision.curves(found)
    assert curve.target == "openvino-cpu"
    assert curve.plot is not None
    points = {marker.point.label or "guess": marker.point for marker in curve.plot.markers}
    assert list(points) == ["all int8", "all float", "round 1 (chosen)", "guess"]     # what failed is in the table
    assert points["all int8"].x == pytest.approx(1.02)
    assert points["all int8"].y == -2.5
    assert points["all int8"].y_interval == (-2.9, -2.2)
    assert points["round 1 (chosen)"].square
    assert not points["guess"].filled
    assert points["guess"].y == pytest.approx(-0.3)
    assert points["guess"].y_interval is None
    assert curve.plot.rule is not None
    assert curve.plot.rule[1] == "the budget"
    assert curve.plot.rule[0] == pytest.approx(curve.plot.y.at(-1.0))
    assert precision.floats(found.points[1]) == "3: see, read, join"


def test_the_page_shows_both(record: dict[str, Any], checked: Record) -> None:
    page = render(checked, "0" * 64)
    assert 'href="#sensitivity"' in page
    assert '<h2 id="budget">' in page
    assert "1 of 3 parts in float: a drop of 0.004" in page
    assert "rpi5 was not timed: it has no address." in page
    assert "OpenVINO refuses it" in page
    assert "int8 costs too much of the budget" in page
    assert "not reached" in page
    assert page.count("the budget</text>") == 1
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    record["stages"] = record["stages"][:-2]
    plain = render(validate(record), "0" * 64)
    assert 'id="budget"' not in plain
    assert "#sensitivity" not in plain


def test_the_terminal_shows_both(record: dict[str, Any]) -> None:
    output = io.StringIO()
    show(record, output)
    text = output.getvalue()
    assert re.search(r"see +image +30.0 dB +−1.2 +33.0 dB", text)
    assert re.search(r"round 1 +1 of 3 +−0.4 \[−0.8, −0.1\]", text)
    assert re.search(r"round 2 +1 of 3 +failed", text)
    assert "budget for x86-vnni: 1 of 3 parts in float: a drop of 0.004" in text
    assert "the budget is kept with 1 of" in text


def test_a_budget_that_was_kept_as_quantized_has_no_curve(record: dict[str, Any]) -> None:
    stage = record["stages"][-2]
    stage["summary"] |= {"points": stage["summary"]["points"][:1], "timed": [], "best": "all int8"}
    stage["summary"]["points"][0]["latency_ms"] = {}
    page = render(validate(record), "0" * 64)
    assert "1 of 3 parts in float" in page
    assert "guessed: not built" not in page
    output = io.StringIO()
    show(record, output)
    assert "bold: what was chosen" not in output.getvalue()


def test_without_a_metric_there_is_noise_alone(record: dict[str, Any]) -> None:
    summary = record["stages"][-1]["summary"]
    summary |= {"metric": None, "in_float": None}
    for one in (summary["everything"], *(part[key] for part in summary["parts"] for key in ("int8", "float"))):
        one["drop"] = None
    ((_, found),) = precision.sensitivities(validate(record))
    assert precision.noise_plot(found) is None
    assert "30.0 dB" in render(validate(record), "0" * 64)


def test_a_summary_of_another_form_is_refused(record: dict[str, Any]) -> None:
    record["stages"][-1]["summary"]["samples"] = "many"
    with pytest.raises(CompressError, match=r"stage 'sensitivity' is not valid: Expected `int`, got `str` - at `\$"):
        validate(record)


def test_noise_that_is_not_finite(record: dict[str, Any]) -> None:
    part = record["stages"][-1]["summary"]["parts"][0]
    part["int8"] |= {"noise": None, "sqnr_db": None, "drop": None, "failure": "output 'output' is NaN"}
    ((_, found),) = precision.sensitivities(validate(record))
    assert precision.decibels(found.parts[0].int8) == "not finite"
    assert precision.change(found.parts[0].int8, "accuracy") == "failed"
    assert precision.noisiest(found.parts)[0].name == "see"
    assert precision.share(found.parts[0].int8, found.parts[:2]) == 1.0
    assert precision.share(found.parts[1].int8, found.parts[:2]) == 1.0     # the noisiest of those that are finite
