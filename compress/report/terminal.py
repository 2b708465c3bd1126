"""The terminal's view: the verdict, one row per engine, and the facts a reader must not miss."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from compress.bench.record import BenchRow, Speedup
from compress.report import conditions, coverage, precision, search, shares, units
from compress.report.credit import credits
from compress.report.page import verdict
from compress.report.schema import Record, metric_of, unit_of
from compress.report.stages import stage_rows
from compress.report.verdict import AGAINST, headline

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 80  # where the output is no terminal
_CONDITIONS = {"Power mode": "", "Clock": "MHz", "Hottest": "°C", "Others' load": "", "Energy, inference": "mJ"}
UNEXPECTED = 4  # layers of an engine that are listed


def print_report(record: Record, file: IO[str] | None = None) -> None:
    """Print ``record`` to ``file`` (standard output by default), without colour where that is no terminal."""
    from rich.console import Console

    console = Console(file=file, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, emoji=False, width=_WIDTH, color_system=None)
    console.print(f"[bold]{_text(record.name)}[/bold]")
    found = verdict(record)
    if found and found.sentence:
        console.print(_text(found.sentence))
        if found.max_drop is not None:
            said = {True: "within the budget", False: "over the budget", None: "not checked"}
            budget = _budget(found.max_drop, record)
            console.print(f"Budget: a {budget}: {said.get(found.within, 'undecidable')}.")
    looked = [table for _, found in precision.sensitivities(record) for table in precision.sensitivity_tables(found)]
    looked += [precision.budget_table(found) for _, found in precision.budgets(record) if len(found.points) > 1]
    looked += [search.table(record.search)] if record.search else []
    tables = (_engines(record), _credit(record), _time(record), _conditions(record), *looked, _stages(record))
    for table in tables:
        if table is not None:
            console.print()
            console.print(table)
    for line in _remarks(record):
        console.print(_text(line), soft_wrap=True)


def _engines(record: Record) -> Table | None:
    if record.bench is None:
        return None
    unit = unit_of(record.bench.metric, record.bench)
    best = headline(record.bench, record.verdict.max_drop if record.verdict else None)
    table = _table("engine", "p50 ms", "speed-up", "score", "change", "size")
    for row in record.bench.rows:
        state = conditions.status(row) or (None if row.status == "measured" else row.status)
        name = row.name if state is None else f"{row.name} ({state})"
        marks = dict.fromkeys(note.label for note in conditions.notes(row) if note.label.isupper())
        table.add_row(
            _text("\n".join([name, *marks])), *_figures(row, unit),
            style="bold" if best and row.name == best.name else "",
        )  # fmt: skip
    table.caption = "speed-up and change against the original's fp32 engine, with 95 % intervals; bold: the verdict's"
    return table


def _figures(row: BenchRow, unit: units.Unit) -> tuple[str, ...]:
    time, score, gain = row.latency_ms, row.accuracy, row.speedup.get(AGAINST)
    drop = score.drop if score else None
    return (
        units.number(time.p50) if time else units.NONE,
        _gain(gain) if gain else units.NONE,
        units.score(score.value, unit) if score else units.NONE,
        units.change_with_interval(drop.points, drop.interval, unit).replace(" points ", "\n") if drop else units.NONE,
        units.size(row.size_bytes),
    )


def _gain(gain: Speedup) -> str:
    low, high = (units.number(bound) for bound in gain.interval)
    said = {True: "", False: "\nno difference", None: "\nundecided"}[gain.different]
    return f"{units.factor(gain.ratio)}\n[{low}, {high}]{said}"


def _credit(record: Record) -> Table | None:
    found = credits(record.bench) if record.bench else ()
    if not found:
        return None
    table = _table("what made it faster", "gain by step", "in all")
    for credit in found:
        steps = ", ".join(f"{step.cause} {units.factor(step.gain)}" for step in credit.steps)
        doubts = ["no difference"] if credit.different is False else []
        doubts += ["INVALID"] if credit.invalid else []
        table.add_row(_text(credit.target), steps, "\n".join([units.factor(credit.total), *doubts]))
    return table


def _time(record: Record) -> Table | None:
    """Each engine's time by component, and its share of the roofline, for those that tell either."""
    times = {one.row.name: one for one in shares.engine_times(record.bench)}
    reached = {row.name: found for row, found in shares.with_roofline(record.bench)}
    if not times and not reached:
        return None
    table = _table("where the time goes", "components", "of the roofline")
    table.columns[1].justify = "left"
    for row in record.bench.rows if record.bench else ():
        one, roofline = times.get(row.name), reached.get(row.name)
        if one is None and roofline is None:
            continue
        parts = sorted(one.parts if one else (), key=lambda part: -(part.share or 0.0))
        told = [f"{part.name} {100 * part.share:.0f}%" for part in parts if part.share is not None]
        share = shares.share(roofline.share, is_least=roofline.uncounted > 0) if roofline else units.NONE
        table.add_row(_text(row.name), _text(", ".join(told) or units.NONE), share)
    return table


def _conditions(record: Record) -> Table | None:
    rows = conditions.with_conditions(record.bench)
    if not rows:
        return None
    found = dict(conditions.columns(rows))
    shown = [(name, unit) for name, unit in _CONDITIONS.items() if set(found[name]) != {conditions.NOT_READ}]
    table = _table("conditions", *(f"{name.lower()}{', ' + unit if unit else ''}" for name, unit in shown))
    for number, row in enumerate(rows):
        told = [found[name][number].partition(" (")[0].removesuffix(f" {unit}") for name, unit in shown]
        table.add_row(_text(row.name), *(_text(text.replace(" → ", "→")) for text in told))
    return table


def _stages(record: Record) -> Table | None:
    if not record.stages:
        return None
    table = _table("stage", "result", "time", "memory")
    table.columns[1].justify = "left"
    for row in stage_rows(record.stages, metric_of(record)):
        seconds, memory = row.stage.seconds, row.stage.peak_memory_bytes
        time = units.NONE if seconds is None else units.seconds(seconds)
        table.add_row(
            _text(row.label),
            _text(row.result or units.NONE),
            f"{time}\nreused" if row.stage.reused else time,
            units.NONE if memory is None else units.size(memory),
        )
    return table


def _remarks(record: Record) -> list[str]:
    """What makes times doubtful, engines that failed, layers that did not run as asked, the parity ladder's flags."""
    rows = record.bench.rows if record.bench else ()
    lines = ["the benchmark is incomplete: it was cut short"] if record.bench and not record.bench.complete else []
    for row in rows:
        notes = conditions.notes(row)
        lines += [f"{row.name}: {note.label}, {note.text}" for note in notes]
        if row.reason and not any(row.reason in note.text for note in notes):
            lines.append(f"{row.name}: {row.reason}")
        if row.unexpected:
            many = f"{len(row.unexpected)} layer{'s' if len(row.unexpected) != 1 else ''}"
            lines.append(f"{row.name}: {many} asked in int8 ran in another precision")
            lines += [f"  {layer}" for layer in row.unexpected[:UNEXPECTED]]
            lines += [f"  and {len(row.unexpected) - UNEXPECTED} more"] if len(row.unexpected) > UNEXPECTED else []
    lines += [
        f"parity, {step.name}: {flag}" for step in (record.parity.steps if record.parity else ()) for flag in step.flags
    ]
    lines += [f"search: {record.search.sentence}"] if record.search else []
    lines += [f"{name}: {found.sentence}" for name, found in precision.budgets(record)]
    lines += coverage.told([f"calibration: {text}" for text in coverage.findings(record)])
    return ["", *lines] if lines else []


def _table(*headings: str) -> Table:
    """A table whose names wrap and are never cut: the first column left, figures right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", show_edge=False)
    table.add_column(headings[0], overflow="fold", ratio=None)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _text(value: str) -> str:
    """``value`` with "?" for what would steer a terminal, and brackets that are no markup."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in value))


def _budget(max_drop: float, record: Record) -> str:
    unit = unit_of(metric_of(record), record.bench)
    most = f"{100 * max_drop:g} point" + ("" if 100 * max_drop == 1 else "s") if unit.share else f"{max_drop:g}"
    return f"{'rise' if unit.lower_is_better else 'drop'} of at most {most}"
