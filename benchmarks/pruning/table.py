"""The tables of benchmarks/results/pruning.json: how right each way is, and how fast ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

TITLES = {"ours": "ours", "magnitude": "our groups, by magnitude", "torch-pruning": "Torch-Pruning, uniform",
          "scratch": "our shape, from scratch"}  # fmt: skip
Row = Mapping[str, Any]


def pruning_lines(record: Row) -> Iterator[str]:
    """Scores behind equal training for each goal; then the speed of what is ours."""
    yield _line(["model", "MACs kept", "original", "right behind pruning", *TITLES.values()])
    yield "| --- | ---: | ---: | ---: |" + " ---: |" * len(TITLES)
    for name, share, model in _sizes(record):
        rows = model["results"][share]
        before = rows["ours"].get("before")
        yield _line([f"`{name}`", _kept(rows["ours"], share), _percent(model["original"]["value"]),
                     "–" if before is None else _percent(before["value"]), *(_mean(rows.get(way)) for way in TITLES)])
    yield ""
    yield _line(["model", "MACs kept", "batch", "original, fp32", "pruned, fp32", "pruned, int8",
                 "points lost, fp32", "points lost, int8"])  # fmt: skip
    yield "| --- | ---: | ---: |" + " ---: |" * 5
    for name, share, model in _sizes(record):
        ours = model["results"][share]["ours"]
        for batch, timed in model.get("latency_ms", {}).get(share, {}).items():
            yield _line([f"`{name}`", _kept(ours, share), batch,
                         f"{statistics.median(timed['original']):.3g} ms",
                         *(_speed(timed, engine) for engine in ("ours", "ours-int8")),
                         *(_lost(ours, precision) for precision in ("after", "int8"))])


def clip_line(record: Row) -> str:
    """What pruning a CLIP takes, in a sentence."""
    seconds = record["seconds"]
    return (f"A CLIP of the size of ViT-B/32 with random weights, {record['samples']} samples with texts of 77 tokens, "
            f"to {100 * record['macs_after'] / record['macs_before']:.0f} % of its multiply-accumulates: "
            f"{seconds['all']:.0f} s and {record['peak_bytes'] / 1e9:.1f} GB on {record['threads']} cores, of which "
            f"{seconds['grouping']:.0f} s are for what goes together and {seconds['importance']:.0f} s for "
            f"`{record['importance']}`.")


def _sizes(record: Row) -> Iterator[tuple[str, str, Row]]:
    """Model, goal, and the model's record; where ours is there."""
    for name, model in record["models"].items():
        for share, rows in model["results"].items():
            if "ours" in rows:
                yield name, share, model


def ratio(timed: Mapping[str, list[float]], engine: str) -> float:
    """How many times as fast as the original: the median over the restarts, each of one run."""
    return float(statistics.median(whole / own for whole, own in zip(timed["original"], timed[engine], strict=True)))


def scores(row: Row, precision: str = "after") -> list[float]:
    """Of each seed."""
    return [float(seed[precision]["value"]) for seed in row["seeds"].values()]


def _kept(ours: Row, goal: str) -> str:
    """Of the multiply-accumulates; with the goal where that was another."""
    kept = f"{100 * ours['macs_kept']:.0f} %"
    return f"{kept}, asked for {goal[1:]}×" if goal.startswith("x") else kept


def _mean(row: Row | None) -> str:
    """The mean and the standard deviation over the seeds."""
    if row is None:
        return "–"
    values = scores(row)
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return _percent(statistics.mean(values)) + spread


def _speed(timed: Mapping[str, list[float]], engine: str) -> str:
    if engine not in timed:
        return "–"
    ratios = [whole / own for whole, own in zip(timed["original"], timed[engine], strict=True)]
    return f"{statistics.median(ratios):.2f}× [{min(ratios):.2f}, {max(ratios):.2f}]"


def _lost(ours: Row, precision: str) -> str:
    """Mean over the seeds; the interval is that of the first."""
    drops = [seed[precision]["drop"] for seed in ours["seeds"].values() if precision in seed]
    if not drops:
        return "–"
    mean, low, high = statistics.mean(drop[0] for drop in drops), drops[0][1], drops[0][2]
    return f"{_points(mean)} [{_points(low)}, {_points(high)}]"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
