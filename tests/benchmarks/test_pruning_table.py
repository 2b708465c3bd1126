"""The tables of pruning: means over seeds, ratios within a run, and what is not there."""

from __future__ import annotations

from benchmarks.pruning.table import clip_line, pruning_lines, ratio, scores

TIMED = {"original": [3.0, 4.0, 3.0], "ours": [1.5, 1.6, 2.0], "ours-int8": [0.5, 1.0, 0.5]}
OURS = {
    "macs_kept": 0.498, "before": {"value": 0.95},
    "seeds": {"0": {"after": {"value": 0.98, "drop": [0.005, -0.001, 0.012]},
                    "int8": {"value": 0.97, "drop": [0.015, 0.01, 0.02]}},
              "1": {"after": {"value": 0.96, "drop": [0.025, 0.01, 0.04]}}},
}  # fmt: skip
MODEL = {
    "original": {"value": 0.985}, "latency_ms": {"0.5": {"1": TIMED}},
    "results": {"0.5": {"ours": OURS, "scratch": {"macs_kept": 0.498, "seeds": {"0": {"after": {"value": 0.5}}}}}},
}  # fmt: skip


def test_ratio_is_the_median_over_the_restarts_of_one_run() -> None:
    """3 / 1.5, 4 / 1.6, 3 / 2."""
    assert ratio(TIMED, "ours") == 2.0
    assert scores(OURS) == [0.98, 0.96]


def test_lines() -> None:
    """The deviation of 98 and 96 is 1.41; the points lost are (0.5 + 2.5) / 2, with the interval of the first seed."""
    lines = list(pruning_lines({"models": {"net": MODEL, "other": {"original": {"value": 1.0}, "results": {}}}}))
    assert "| `net` | 50 % | 98.5 % | 95.0 % | 97.0 % ± 1.4 | – | – | 50.0 % |" in lines
    assert ("| `net` | 50 % | 1 | 3 ms | 2.00× [1.50, 2.50] | 6.00× [4.00, 6.00] | 1.5 [−0.1, 1.2] | 1.5 [1.0, 2.0] |"
            in lines)
    assert not any("other" in line for line in lines)


def test_goal_in_latency_is_told() -> None:
    lines = list(pruning_lines({"models": {"net": {**MODEL, "results": {"x1.7": {"ours": OURS}},
                                                   "latency_ms": {"x1.7": {"1": TIMED}}}}}))
    assert any(line.startswith("| `net` | 50 %, asked for 1.7× | 98.5 % | 95.0 %") for line in lines)
    assert any(line.startswith("| `net` | 50 %, asked for 1.7× | 1 | 3 ms") for line in lines)


def test_clip_line() -> None:
    record = {
        "samples": 64, "macs_before": 200, "macs_after": 99, "peak_bytes": 4.66e9, "threads": 2, "importance": "taylor",
        "seconds": {"all": 61.2, "grouping": 30, "importance": 9},
    }  # fmt: skip
    assert clip_line(record).endswith(
        "to 50 % of its multiply-accumulates: 61 s and 4.7 GB on 2 cores, of which 30 s are for what goes together and "
        "9 s for `taylor`.")
