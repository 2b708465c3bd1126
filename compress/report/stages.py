"""What each stage did, in one line, and where it stands on the run's time line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report import units
from compress.report.schema import Stage, summary, unit_of
from compress.report.summaries import (
    BudgetSummary,
    DistillSummary,
    ExportSummary,
    PruneSummary,
    QuantizeSummary,
    SensitivitySummary,
)


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """``start`` and ``width`` are shares of the whole run's time."""

    stage: Stage
    label: str
    result: str
    start: float
    width: float


def stage_rows(stages: Sequence[Stage], metric: str = "accuracy") -> tuple[StageRow, ...]:
    """The stages in the order they ran, each beginning where the one before it ended; ``metric`` names the scores."""
    total = sum(stage.seconds or 0.0 for stage in stages) or 1.0
    rows, start = [], 0.0
    for stage in stages:
        width = (stage.seconds or 0.0) / total
        rows.append(StageRow(stage=stage, label=label(stage), result=result(stage, metric), start=start, width=width))
        start += width
    return tuple(rows)


def label(stage: Stage) -> str:
    told = f"{stage.stage} for {stage.target_scheme}" if stage.target_scheme else stage.stage
    return told if stage.round is None else f"{told}, round {stage.round}"


def result(stage: Stage, metric: str = "accuracy") -> str:
    """What came out, in one line; empty where the stage told nothing."""
    found = summary(stage)
    if isinstance(found, DistillSummary):
        return _distilled(found, metric)
    for kind, tell in _TELL.items():
        if isinstance(found, kind):
            return tell(found)
    if isinstance(found, dict):
        return ", ".join(f"{key} {value}" for key, value in found.items() if isinstance(value, str | int | float))
    return ""


def _pruned(found: PruneSummary) -> str:
    less = 1 - found.macs_after / found.macs_before if found.macs_before else 0.0
    share = units.minus(f"{-100 * less:+.0f} %")
    text = f"{units.count(found.macs_before)} → {units.count(found.macs_after)} MACs ({share})"
    whole = len(found.skipped)
    return text + (f", {_many(whole, 'part')} left as {'it was' if whole == 1 else 'they were'}" if whole else "")


def _distilled(found: DistillSummary, metric: str) -> str:
    text = _many(len(found.history), "epoch")
    if found.before is not None and found.after is not None:
        before, after = (units.score(score, unit_of(metric)) for score in (found.before, found.after))
        text += f", {metric} {before} → {after}"
    if found.kept_epoch is not None and found.kept_epoch < len(found.history):
        text += (
            f"; kept the weights of epoch {found.kept_epoch}" if found.kept_epoch else "; kept the weights as they were"
        )
    return text


def _quantized(found: QuantizeSummary) -> str:
    counts = Counter(operator.precision for operator in found.operators)
    alone = [f"{counts[name]} with {name} alone" for name in ("int8 weights", "int4 weights") if counts[name]]
    ranges = f"{found.ranges} ranges of {_many(found.samples, 'sample')}"
    told = [f"{_many(counts['int8'], 'operator')} in int8", *alone, f"{counts['float']} in float"]
    return f"{', '.join(told)}; {ranges}"


def _budgeted(found: BudgetSummary) -> str:
    floats = sum(part.choice == "float" for part in found.parts)
    kept = "kept" if found.outcome == "met" else "not kept"
    return f"the budget is {kept} with {floats} of {_many(len(found.parts), 'part')} in float"


def _sensed(found: SensitivitySummary) -> str:
    return f"{_many(len(found.parts), 'part')} on {_many(found.samples, 'sample')}"


def _exported(found: ExportSummary) -> str:
    text = f"{_many(sum(max(1, len(one.graphs)) for one in found.built), 'engine')} built"
    return text + (f", {len(found.not_built)} not built" if found.not_built else "")


_TELL: Mapping[type, Callable[[Any], str]] = {
    PruneSummary: _pruned,
    QuantizeSummary: _quantized,
    BudgetSummary: _budgeted,
    SensitivitySummary: _sensed,
    ExportSummary: _exported,
}


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
