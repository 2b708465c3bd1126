"""docs/measuring.md gives the limits and the settings that the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from compress.bench import marks
from compress.bench.config import PRESETS
from compress.bench.early_stopping import CONFIDENCE, smallest_count
from compress.bench.record import VERSION, Scenario
from compress.bench.scenarios import MULTI_STREAM_SAMPLES, OFFLINE_SAMPLES
from compress.bench.table import EMULATED, TOO_SMALL
from compress.intervals import DIFFERENT, median_interval
from runtimes.timing import AGREEMENT, WARMUP_LIMIT, WINDOWS

TEXT = " ".join((Path(__file__).parents[3] / "docs/measuring.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name: str) -> None:
    plan = PRESETS[name]
    row = f"| `{name}` | {plan.restarts} | {plan.warmup_s:g} s | {plan.duration_s:g} s | {plan.min_runs} |"
    assert row in TEXT


def test_scenarios() -> None:
    assert set(re.findall(r"\| `(\w+_?stream|offline)` \|", TEXT)) == set(get_args(Scenario))
    assert f"{MULTI_STREAM_SAMPLES} samples; the next when all are done" in TEXT
    assert f"at most {OFFLINE_SAMPLES}, without a pause" in TEXT


def test_limits() -> None:
    assert f"reaches further than {marks.WIDEST:.0%} from it".replace("%", " %") in TEXT
    drift, foreign = f"{marks.DRIFT:.0%}".replace("%", " %"), f"{marks.FOREIGN:.0%}".replace("%", " %")
    assert TEXT.count(f"by more than {drift}") == 1
    assert f"others took more than {foreign} of all cores' time" in TEXT
    assert (WINDOWS, round(AGREEMENT - 1, 2), WARMUP_LIMIT) == (3, 0.03, 10)
    assert "the medians of three spells in a row within 3 % of each other" in TEXT
    assert "ten times that at most" in TEXT


def test_statistics() -> None:
    said = ", ".join(f"{smallest_count(percent)} for p{percent}" for percent in (90, 95, 99))
    assert said in TEXT
    assert (CONFIDENCE, DIFFERENT) == (0.99, 0.99)
    for count in (8, 12):
        assert f"({median_interval(range(count))[2]:.1%})".replace("%", " %") in TEXT
    assert f"version {VERSION}" in TEXT
    assert EMULATED in TEXT
    assert TOO_SMALL in TEXT
