"""The page: one HTML file that loads nothing, needs no script, and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.bench.record import BenchRecord, BenchRow
from compress.report import conditions, coverage, precision, pruning, search, shares, units
from compress.report.components import component_rows, total
from compress.report.credit import credits
from compress.report.plots import Lines, Point, Scatter, lines, scatter
from compress.report.schema import Baseline, Record, metric_of, summary, unit_of
from compress.report.stages import label, stage_rows
from compress.report.summaries import DistillSummary, ExportSummary, PruneSummary, QuantizeSummary
from compress.report.verdict import AGAINST, headline, judge, reference, size_ratio
from runtimes.spec import TensorSpec

BASELINE = 4  # the series of a plot after those of four targets


def render(record: Record, digest: str) -> str:
    """The page of ``record``; ``digest`` is the SHA-256 of the report.json it is a view of."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "milliseconds", "seconds", "size", "count", "factor", "score", "change", "change_interval",
                 "short"):  # fmt: skip
        environment.filters[name] = getattr(units, name)
    environment.globals.update(filters=units, facts=facts, layers=layers, conditions=conditions, shares=shares,
                               precision=precision, pruned=pruning, searched=search)
    environment.filters["precision_class"] = precision_class
    return environment.get_template("report.html").render(digest=digest, r=record, **context(record))


def context(record: Record) -> dict[str, Any]:
    """Everything the template shows that is not in the record itself."""
    bench, components = record.bench, component_rows(record)
    max_drop, said = record.verdict.max_drop if record.verdict else None, verdict(record)
    head = headline(bench, max_drop) if bench else None
    return {
        "verdict": said,
        "unit": unit_of(metric_of(record), bench),
        "metric": metric_of(record),
        "against": AGAINST,
        "head": head,
        "sure": head is not None and not conditions.doubts(head) and bool(said) and said.within is True,
        "origin": reference,
        "size_ratio": size_ratio,
        "targets": by_target(bench),
        "groups": conditions.groups(bench),
        "times": shares.engine_times(bench),
        "latency_plot": trade_off(bench, record.baselines or (), "latency") if bench else None,
        "size_plot": trade_off(bench, (), "size") if bench else None,
        "credits": credits(bench) if bench else (),
        "components": components,
        "component_total": {figure: total(components, figure) for figure in ("parameters", "macs", "size_bytes")},
        "stages": stage_rows(record.stages or (), metric_of(record)),
        "prunes": _of(record, PruneSummary),
        "quantizes": _of(record, QuantizeSummary),
        "exports": _of(record, ExportSummary),
        "curves": [
            (name, curves(found, metric_of(record)))
            for name, found in _of(record, DistillSummary)
            if len(found.history) > 1
        ],
        "inputs": [TensorSpec.from_json(spec) for spec in (record.model.inputs if record.model else ())],
        "outputs": [TensorSpec.from_json(spec) for spec in (record.model.outputs if record.model else ())],
        "datasets": [
            (name, one)
            for name in ("calibration", "train", "validation")
            if record.data and (one := getattr(record.data, name))
        ],
        "covered": coverage.samples(record),
        "covered_components": coverage.components(record),
        "findings": coverage.findings(record),
        "sensitivities": precision.sensitivities(record),
        "pruning_curves": pruning.pruning_curves(record),
        "budgets": precision.budgets(record),
        "machines": machines(record),
        "recipe": _yaml(record.recipe) if record.recipe else None,
        "command": record.command or ("compress run recipe.yaml" if record.recipe else None),
    }


def machines(record: Record) -> list[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]:
    """Name, facts and versions of the machine that wrote the report, and of the others that measured for it."""
    bench = record.bench
    found = []
    if record.machine or record.versions or bench is None:
        found = [("Machine", facts(record.machine or {}), sorted((record.versions or {}).items()))]
    for name, told in bench.machines.items() if bench else ():
        if not (found and name == "local"):
            versions = bench.versions.get(name, {}) if bench else {}
            found.append(("Machine" if name == "local" else name, facts(told), sorted(versions.items())))
    return [one for one in found if one[1] or one[2]]


def verdict(record: Record) -> Any:
    """The record's verdict; where it has none or only the budget, the one its benchmark gives."""
    if record.bench is None or (record.verdict and record.verdict.sentence):
        return record.verdict
    return judge(record.bench, record.verdict.max_drop if record.verdict else None)


def by_target(bench: BenchRecord | None) -> dict[str, list[BenchRow]]:
    """Target -> its engines, in the record's order."""
    found: dict[str, list[BenchRow]] = {}
    for row in bench.rows if bench else ():
        found.setdefault(row.target, []).append(row)
    return found


def short_name(row: BenchRow) -> str:
    """The engine's name without its target's, which the plot tells by colour."""
    return row.name.replace(row.target, "").strip(" /·-@,:()[]") or row.name


def trade_off(bench: BenchRecord, baselines: Sequence[Baseline], figure: str) -> Scatter | None:
    """Accuracy against ``figure`` ("latency" or "size") of every engine that has both; None where none has."""
    unit, targets = unit_of(bench.metric, bench), list(by_target(bench))
    points = []
    for row in bench.rows:
        if row.latency_ms is None or row.accuracy is None or not row.size_bytes:
            continue
        time, score = row.latency_ms, row.accuracy
        points.append(
            Point(
                x=time.p50 if figure == "latency" else float(row.size_bytes),
                y=score.value,
                label=short_name(row) + (" (INVALID)" if conditions.is_marked(row, "INVALID") else ""),
                x_interval=time.interval if figure == "latency" else None,
                y_interval=score.interval,
                series=targets.index(row.target) % 4,
                filled=row.role != "original",
                title=f"{row.name}\n{row.precision} on {row.target}\np50 {units.milliseconds(time.p50)}, "
                f"{score.metric} {units.score(score.value, unit)}, {units.size(row.size_bytes)}\n"
                f"engine {units.short(row.digest)}",
            )
        )
    if not points:
        return None
    points += [
        Point(
            x=one.latency_ms,
            y=one.accuracy,
            label=one.name,
            title=f"baseline: {one.name}\n{one.note}",
            series=BASELINE,
            square=True,
        )
        for one in baselines
        if figure == "latency" and one.latency_ms is not None and one.accuracy is not None
    ]
    x_label = {
        "latency": "latency p50, ms (log scale, faster to the left)",
        "size": "engine size (smaller to the left)",
    }
    return scatter(
        points,
        x_label=x_label[figure],
        y_label=f"{bench.metric}, %" if unit.share else bench.metric,
        x_text=units.bare if figure == "latency" else lambda v: units.size(v, units.bare),
        y_text=lambda v: units.bare(100 * v if unit.share else v),
    )


def curves(found: DistillSummary, metric: str) -> list[Lines]:
    """The loss, and the metric where it was measured, over the epochs; a line marks the metric before the first."""
    unit = unit_of(metric)
    drawn = [lines("loss", [(e.epoch, e.loss) for e in found.history], x_label="epoch")]
    scores = [(e.epoch, e.metric) for e in found.history if e.metric is not None]
    if len(scores) > 1:
        rule = None if found.before is None else (found.before, f"before: {units.score(found.before, unit)}")
        drawn.append(
            lines(
                metric,
                scores,
                x_label="epoch",
                rule=rule,
                y_text=lambda v: f"{units.bare(100 * v)} %" if unit.share else units.bare(v),
            )
        )
    return drawn


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (name, text) pairs, in its own order: ``clocks: {max: 3}`` becomes ``clocks max: 3``."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            found += facts(value, f"{name} ")
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(str(item) for item in value) or "none"))
        elif value is not None:
            is_size = str(key).endswith("bytes") and isinstance(value, int) and not isinstance(value, bool)
            found.append(
                (name.removesuffix(" bytes"), units.size(value))
                if is_size
                else (name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))
            )
    return found


def precision_class(precision: str) -> str:
    """The style of a precision: int8 (int4 too), half, float or other."""
    if precision in ("int8", "i8", "u8", "uint8", "int4"):
        return "int8"
    return {"bf16": "half", "fp16": "half", "f16": "half", "fp32": "float", "f32": "float"}.get(precision, "other")


def layers(row: BenchRow) -> list[tuple[str, int]]:
    """The row's layers by precision, the narrowest first."""
    order = ("int8", "half", "float", "other")
    return sorted(row.precisions.items(), key=lambda item: order.index(precision_class(item[0])))


def _of(record: Record, kind: type) -> list[tuple[str, Any]]:
    return [(label(stage), found) for stage in record.stages or () if isinstance(found := summary(stage), kind)]


def _yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100))
