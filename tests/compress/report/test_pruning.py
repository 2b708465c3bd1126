"""Curves of what each part costs that is pruned alone, on the page and in the terminal."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from compress.report.page import render
from compress.report.pruning import curve_tables, family, kinds, pruning_curves
from compress.report.schema import validate
from compress.report.summaries import PruneCurves


def point(kept: float, macs: float, noise: float, points: float | None = None) -> dict[str, Any]:
    drop = None if points is None else {"points": points, "interval": [points - 0.5, points + 0.5], "n": 50}
    return {"kept": kept, "macs": macs, "noise": noise, "sqnr_db": 20.0 if noise == 0.01 else 10.0, "drop": drop,
            "failure": None}


def part(kind: str, name: str, noise: float, *points: float) -> dict[str, Any]:
    told = points or (None, None)
    return {"kind": kind, "name": name, "groups": 2, "modality": "image",
            "points": [point(0.75, 0.9, 0.01, told[0]), point(0.25, 0.7, noise, told[1])]}


@pytest.fixture
def found() -> dict[str, Any]:
    return {"metric": "accuracy", "whole": 0.9, "samples": 64, "data": "abc", "parts": [
        part("component", "image_encoder", 0.1, 0.2, 3.0), part("component", "text_<b>", 0.2, 0.4, 8.0),
        part("modality", "image", 0.1, 0.2, 3.0)]}


def test_those_that_cost_most_come_first(found: dict[str, Any]) -> None:
    curves = msgspec.convert(found, PruneCurves)
    assert [one.name for one in kinds(curves)["component"]] == ["text_<b>", "image_encoder"]


def test_a_curve_begins_at_the_whole_model(found: dict[str, Any]) -> None:
    curves = msgspec.convert(found, PruneCurves)
    drawn = family(kinds(curves)["component"], "accuracy")
    assert drawn is not None
    first, second = drawn.curves
    assert [(x, y) for x, y, _ in first.dots] == [
        (drawn.x.at(0), drawn.y.at(0)), (drawn.x.at(0.25), drawn.y.at(-0.4)), (drawn.x.at(0.75), drawn.y.at(-8))]
    assert first.end == first.dots[-1][:2]
    assert abs(first.text_y - second.text_y) >= 17
    assert "text_<b>: 25 % of its widths, 70 % of the MACs of all; 10.0 dB, −8.0 points" in first.dots[2][2]
    assert [text for _, text in drawn.x.ticks] == ["100 %", "75 %", "50 %", "25 %"]


def test_without_a_metric_it_is_the_signal_over_the_noise(found: dict[str, Any]) -> None:
    plain = {**found, "metric": None, "parts": [part("component", "image_encoder", 0.1)]}
    curves = msgspec.convert(plain, PruneCurves)
    drawn = family(curves.parts, None)
    assert drawn is not None
    assert [y for _, y, _ in drawn.curves[0].dots] == [drawn.y.at(20), drawn.y.at(10)]
    assert family([], None) is None


def test_the_page_and_the_terminal(example: dict[str, Any], found: dict[str, Any]) -> None:
    stage = next(one for one in example["stages"] if one["stage"] == "prune")
    stage["summary"]["sensitivity"] = found
    record = validate(example)
    assert [name for name, _ in pruning_curves(record)] == ["prune"]
    page = render(record, "0" * 64)
    assert '<h2 id="pruned-parts">Sensitivity of pruning</h2>' in page
    assert "text_&lt;b&gt;" in page
    assert "<b>:" not in page
    assert "−8.0 points" in page
    console = Console(width=160, record=True, file=io.StringIO())
    for table in curve_tables(msgspec.convert(found, PruneCurves)):
        console.print(table)
    text = console.export_text()
    assert "75 % kept" in text
    assert "90 / 70 %" in text
    assert "20.0 dB" in text
