"""Sensitivity curves of pruning, as the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.report import units
from compress.report.axes import Axis, axis
from compress.report.plots import HEIGHT, WIDTH
from compress.report.precision import change, decibels, signed
from compress.report.schema import Record, summary, unit_of
from compress.report.stages import label
from compress.report.summaries import PruneCurve, PruneCurves, PruneSummary

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 12          # parts that the terminal lists, those that cost most
DRAWN = 8           # curves in a plot
_RIGHT, _LINE = 250.0, 17.0     # of the plot, where the names stand; between two names


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A curve in pixels; ``dots`` are (x, y, hover text); its name stands at ``text_y``, joined to its end."""

    name: str
    series: int
    path: str
    dots: tuple[tuple[float, float, str], ...]
    end: tuple[float, float]
    text_y: float


@dataclass(frozen=True, kw_only=True)
class Family:
    """Curves over one pair of axes."""

    x: Axis
    y: Axis
    curves: tuple[Drawn, ...]
    width: float = WIDTH
    height: float = HEIGHT


def pruning_curves(record: Record) -> list[tuple[str, PruneCurves]]:
    """What the stage is called, and what it found."""
    return [(label(stage), found.sensitivity) for stage in record.stages or ()
            if isinstance(found := summary(stage), PruneSummary) and found.sensitivity is not None]  # fmt: skip


def kinds(found: PruneCurves) -> dict[str, list[PruneCurve]]:
    """The parts by kind, those first that cost most where the least of them is left."""
    groups: dict[str, list[PruneCurve]] = {}
    for part in found.parts:
        groups.setdefault(part.kind, []).append(part)
    return {kind: sorted(parts, key=lambda part: -_cost(part)) for kind, parts in groups.items()}


def shares(found: PruneCurves) -> list[float]:
    return [point.kept for point in found.parts[0].points] if found.parts else []


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def family(parts: Sequence[PruneCurve], metric: str | None) -> Family | None:
    """The metric's change, or else the signal over the noise, over the share of its widths that a part keeps."""
    told = [(part, found) for part in parts[:DRAWN] if (found := _values(part, metric))]
    if not told:
        return None
    ys = [y for _, found in told for _, y, _ in found]
    unit = None if metric is None else unit_of(metric)
    across = axis([1 - x for _, found in told for x, _, _ in found], label="share of its widths that the part keeps",
                  start=74.0, end=WIDTH - _RIGHT, padding=0.04, text=lambda lost: percent(1 - lost), smallest_step=0.25)
    named = "signal over noise in the outputs, dB" if unit is None else (
        f"change of {metric}" + (", points" if unit.share else ""))
    up = axis(ys, label=named, start=HEIGHT - 54.0, end=22.0, text=units.bare)
    ends = {number: up.at(found[-1][1]) for number, (_, found) in enumerate(told)}
    return Family(x=across, y=up, curves=tuple(
        _drawn(number, part, found, across, up, places)
        for places in (_spread(ends),) for number, (part, found) in enumerate(told)))


def curve_tables(found: PruneCurves) -> list[Table]:
    """For the terminal, a table of each kind of parts."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = []
    for kind, parts in kinds(found).items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", show_edge=False)
        table.add_column(kind, overflow="fold")
        if kind != "modality":
            table.add_column("reached by", overflow="fold")
        for share in shares(found):
            table.add_column(f"{percent(share)} kept", justify="right", overflow="fold")
        table.add_column("MACs left", justify="right")
        for part in parts[:SHOWN]:
            cells = [decibels(point) if found.metric is None
                     else f"{change(point, found.metric).replace(' points ', ' ')}\n{decibels(point)}"
                     for point in part.points]  # fmt: skip
            left = " / ".join(f"{100 * point.macs:.0f}" for point in part.points)
            table.add_row(escape(part.name), *([part.modality] if kind != "modality" else []), *cells, f"{left} %")
        if len(parts) > SHOWN:
            table.caption = f"the {SHOWN} of {len(parts)} that cost most"
        made.append(table)
    return made


def _cost(part: PruneCurve) -> float:
    """What the part costs where the least of it is left: of the metric, or else noise."""
    last = part.points[-1]
    if last.drop is not None:
        return last.drop.points
    return float("inf") if last.noise is None or last.failure is not None else last.noise


def _values(part: PruneCurve, metric: str | None) -> list[tuple[float, float, str]]:
    """Share kept, value, hover text; with a metric the curve begins at the whole model, which changes nothing."""
    found = [] if metric is None else [(1.0, 0.0, f"{part.name}: whole")]
    for point in part.points:
        value = point.sqnr_db if metric is None else None if point.drop is None else signed(point.drop.points, metric)
        if value is not None:
            told = decibels(point) + (f", {change(point, metric)}" if metric is not None else "")
            found.append((point.kept, value, f"{part.name}: {percent(point.kept)} of its widths, "
                                             f"{percent(point.macs)} of the MACs of all; {told}"))
    return found if len(found) > 1 else []


def _drawn(
    number: int, part: PruneCurve, found: Sequence[tuple[float, float, str]], across: Axis, up: Axis,
    places: dict[int, float],
) -> Drawn:  # fmt: skip
    dots = tuple((across.at(1 - x), up.at(y), text) for x, y, text in found)
    return Drawn(name=part.name, series=number % 4, path="M" + " L".join(f"{x},{y}" for x, y, _ in dots), dots=dots,
                 end=dots[-1][:2], text_y=places[number])


def _spread(ends: dict[int, float]) -> dict[int, float]:
    """Where names stand: beside the curves' ends, and apart from each other."""
    places: dict[int, float] = {}
    last = 0.0
    for number in sorted(ends, key=lambda one: (ends[one], one)):
        last = places[number] = max(ends[number], last + _LINE)
    return places
