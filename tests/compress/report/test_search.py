"""The views of a search: its table, its curve, what each part is and loses, and that the page and the terminal show it.
"""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from compress.errors import CompressError
from compress.report import search as views
from compress.report import show
from compress.report.page import render
from compress.report.schema import Record, validate
from compress.report.summaries import Search


@pytest.fixture
def record(example: dict[str, Any], search: dict[str, Any]) -> dict[str, Any]:
    example["search"] = search
    example["stages"][0]["round"] = 1
    return example


@pytest.fixture
def checked(record: dict[str, Any]) -> Record:
    return validate(record)


@pytest.fixture
def found(checked: Record) -> Search:
    assert checked.search is not None
    return checked.search


def test_the_curve_has_every_engine_of_every_round_and_the_budget(found: Search) -> None:
    plot = views.curve(found, "openvino-cpu")
    points = {marker.point.label: marker.point for marker in plot.markers}
    assert list(points) == ["0, fp32", "0, int8", "1, fp32", "1, int8 (kept)", "2, fp32", "2, int8"]
    assert (points["2, int8"].x, points["2, int8"].y) == (0.7, -1.8)
    assert points["2, int8"].y_interval == pytest.approx((-2.2, -1.5))
    assert points["1, int8 (kept)"].square
    assert [points["1, fp32"].filled, points["1, int8 (kept)"].filled] == [False, True]
    assert plot.rule == (plot.y.at(-1.0), "the budget")
    assert points["1, fp32"].title == "round 1, fp32\n2.00 ms, 2.0×, −0.1 points [−0.5, +0.2], 4.00 MB"


def test_what_each_part_is_and_loses(found: Search) -> None:
    see, read = views.components(found, found.rounds[1])
    assert (see.name, see.modality, see.macs, see.macs_before) == ("see", "image", 100_000_000, 200_000_000)
    assert (see.time_us, see.time_before_us) == ({"openvino-cpu": 800.0}, {"openvino-cpu": 1600.0})
    assert (see.points, read.points) == (0.2, None)
    image, text = views.modalities(found, found.rounds[1])
    assert (image.name, image.params, image.points) == ("image", 900_000, 0.2)
    assert (text.name, text.time_us) == ("text", {"openvino-cpu": 250.0})


def test_what_each_step_did(found: Search) -> None:
    assert views.steps(found.rounds[1], "accuracy") == [
        ("prune", "220 M → 120 M MACs (−45 %)", 20.0), ("quantize for x86-vnni", "", 2.0)]  # fmt: skip
    assert views.seconds(found.rounds[1]) == 52.0
    assert views.size(found.rounds[1]) == 1_000_000
    assert views.size(found.rounds[3]) == 0


def test_the_page(record: dict[str, Any], checked: Record) -> None:
    page = render(checked, "0" * 64)
    assert '<a href="#search">Rounds</a>' in page
    assert page.count("the budget</text>") == 1
    assert "rtx was not timed: its engines are built here." in page
    assert "cannot prune to &lt;b&gt;1.22&lt;/b&gt; times" in page
    assert page.count("what each step cost and gained") == 4
    assert "prune, round 1" in page
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    record["search"]["complete"] = False
    assert '<span class="badge open">interrupted</span>' in render(validate(record), "0" * 64)
    del record["search"]
    assert "#search" not in render(validate(record), "0" * 64)


def test_the_terminal(record: dict[str, Any]) -> None:
    output = io.StringIO()
    show(record, output)
    text = output.getvalue()
    assert re.search(r"1 from 0 +−0.4 +1.00 +4.0× +120 M +1.00 MB +52.0 s", text)
    assert re.search(r"3 from 1, *–.*20.0 s", text)
    assert "search: kept: 4 times as fast as the original's fp32 engine" in text


def test_a_section_of_another_form_is_refused(record: dict[str, Any]) -> None:
    record["search"]["rounds"][0]["macs"] = "many"
    with pytest.raises(CompressError, match=r"Expected `int`, got `str` - at `\$\.search\.rounds\[0\]\.macs`"):
        validate(record)
