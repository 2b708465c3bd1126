"""Int8 part by part, as the page and the terminal show it: what each part costs, and the trade-off under a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.report import units
from compress.report.plots import Point, Scatter, scatter
from compress.report.schema import Record, summary, unit_of
from compress.report.stages import label
from compress.report.summaries import BudgetSummary, Effect, Mixture, SensitivePart, SensitivitySummary

if TYPE_CHECKING:
    from rich.table import Table

LABELLED = 12       # of the parts in a plot, the noisiest
SHOWN = 12          # parts that the terminal lists, the noisiest
_FINEST = ("layer", "block", "component", "modality")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The trade-off on one target; ``plot`` is None where nothing has a latency there."""

    target: str
    plot: Scatter | None


def sensitivities(record: Record) -> list[tuple[str, SensitivitySummary]]:
    """What the stage is called, and what it found, for every scheme."""
    return [(label(stage), found) for stage in record.stages or ()
            if isinstance(found := summary(stage), SensitivitySummary)]  # fmt: skip


def budgets(record: Record) -> list[tuple[str, BudgetSummary]]:
    return [(label(stage), found) for stage in record.stages or ()
            if isinstance(found := summary(stage), BudgetSummary)]  # fmt: skip


def kinds(found: SensitivitySummary) -> dict[str, list[SensitivePart]]:
    """The parts by kind, in the order of the record."""
    groups: dict[str, list[SensitivePart]] = {}
    for part in found.parts:
        groups.setdefault(part.kind, []).append(part)
    return groups


def noisiest(parts: Sequence[SensitivePart]) -> list[SensitivePart]:
    """The part first whose int8 alone disturbs the outputs most."""
    return sorted(parts, key=lambda part: -_noise(part.int8))


def decibels(effect: Effect | None) -> str:
    """Signal over noise: ``43.1 dB``, or that there is no difference."""
    if effect is None:
        return units.NONE
    if effect.noise == 0:
        return "no difference"
    return "not finite" if effect.sqnr_db is None else f"{effect.sqnr_db:.1f} dB".replace("-", units.minus("-"))


def change(effect: Effect | None, metric: str | None) -> str:
    """The metric's change, with its interval; why there is none."""
    if effect is None or metric is None or (effect.drop is None and effect.failure is None):
        return units.NONE
    if effect.drop is None:
        return "failed"
    return units.change_with_interval(effect.drop.points, effect.drop.interval, unit_of(metric))


def share(effect: Effect | None, parts: Sequence[SensitivePart]) -> float:
    """Noise beside the noisiest part's, as a share of a scale that spans 60 dB below it."""
    most = max((noise for part in parts if math.isfinite(noise := _noise(part.int8))), default=0.0)
    own = _noise(effect)
    if not own or not most:
        return 0.0
    if own >= most:
        return 1.0
    return max(0.0, 1 + 10 * math.log10(own / most) / 60)


def noise_plot(found: SensitivitySummary) -> Scatter | None:
    """The parts of the finest kind: the metric's change over the noise of each alone in int8; None without a metric."""
    groups = kinds(found)
    kind = next((kind for kind in _FINEST if kind in groups), None)
    if kind is None or found.metric is None:
        return None
    unit = unit_of(found.metric)
    modalities = list(dict.fromkeys(part.modality for part in groups[kind]))
    points: list[Point] = []
    for part in noisiest(groups[kind]):
        effect = part.int8
        if effect is None or effect.drop is None or not effect.noise:
            continue
        told = f"alone in int8: {decibels(effect)}, {change(effect, found.metric)}"
        points.append(
            Point(
                x=effect.noise, y=signed(effect.drop.points, found.metric), series=modalities.index(part.modality) % 4,
                label=part.name if len(points) < LABELLED else "", title=f"{part.name}, {part.modality}\n{told}",
            )
        )  # fmt: skip
    if not points:
        return None
    return scatter(
        points, x_label=f"noise of one {kind} alone in int8, as a share of the outputs' power (log scale)",
        y_label=f"change of {found.metric}" + (", points" if unit.share else ""), y_text=units.bare, x_text=units.bare,
    )  # fmt: skip


def curves(found: BudgetSummary) -> list[Curve]:
    """The trade-off on every target that was timed: the metric's change over the latency, measured and guessed."""
    return [Curve(target=target, plot=_curve(found, target)) for target in found.timed]


def floats(point: Mixture) -> str:
    """How many parts are float, and which where they are few."""
    names = ", ".join(point.float) if len(point.float) <= 3 else ""
    return f"{len(point.float)}" + (f": {names}" if names else "")


def measured(found: BudgetSummary) -> list[Mixture]:
    return [point for point in found.points if point.drop is not None or point.failure is not None]


def sensitivity_tables(found: SensitivitySummary) -> list[Table]:
    """For the terminal, a table of each kind of parts."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = []
    for kind, parts in kinds(found).items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", show_edge=False)
        table.add_column(kind, overflow="fold")
        reached = [] if kind == "modality" else ["reached by"]
        for heading in reached:
            table.add_column(heading, overflow="fold")
        for heading in ("alone in int8", "change", "alone in float", "change"):
            table.add_column(heading, justify="right", overflow="fold")
        for part in noisiest(parts)[:SHOWN]:
            name = part.name if part.reached else f"{part.name} (not reached)"
            told = [text for effect in (part.int8, part.float)
                    for text in (decibels(effect), change(effect, found.metric).replace(" points ", "\n"))]  # fmt: skip
            table.add_row(escape(name), *([part.modality] if reached else []), *told)
        if len(parts) > SHOWN:
            table.caption = f"the {SHOWN} noisiest of {len(parts)}"
        made.append(table)
    return made


def budget_table(found: BudgetSummary) -> Table:
    """For the terminal: what was measured of the trade-off."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", show_edge=False)
    table.add_column("mixture", overflow="fold")
    for heading in ("in float", "change", "guessed", *(f"ms, {target}" for target in found.timed)):
        table.add_column(heading, justify="right", overflow="fold")
    unit = unit_of(found.metric)
    for point in measured(found):
        told = "failed" if point.drop is None else units.change_with_interval(
            point.drop.points, point.drop.interval, unit).replace(" points ", " ")  # fmt: skip
        times = [_milliseconds(point, target) for target in found.timed]
        table.add_row(escape(point.name), f"{len(point.float)} of {len(found.parts)}", told,
                      units.change(point.predicted.points, unit), *times,
                      style="bold" if point.name == found.best else "")  # fmt: skip
    table.caption = "bold: what was chosen"
    return table


def _milliseconds(point: Mixture, target: str) -> str:
    time = (point.latency_ms or {}).get(target)
    return units.NONE if time is None else units.number(time)


def _curve(found: BudgetSummary, target: str) -> Scatter | None:
    unit = unit_of(found.metric)
    points = []
    for point in found.points:
        guess = point.drop is None or target not in (point.latency_ms or {})
        time = point.predicted.latency_ms.get(target) if guess else (point.latency_ms or {})[target]
        if point.failure is not None or time is None or time <= 0:
            continue
        lost = point.predicted.points if guess or point.drop is None else point.drop.points
        interval = None if guess or point.drop is None else point.drop.interval
        ends = None if interval is None else (signed(interval[1], found.metric), signed(interval[0], found.metric))
        best = point.name == found.best
        told = f"{units.change(lost, unit)}{' points' if unit.share else ''}, {units.milliseconds(time)}"
        points.append(
            Point(
                x=time, y=signed(lost, found.metric), filled=not guess, square=best, y_interval=ends,
                series=1 if best else 4 if guess else 0,
                label="" if guess else f"{point.name} (chosen)" if best else point.name,
                title=f"{point.name}{', not built' if guess else ''}\n{len(point.float)} of {len(found.parts)} parts "
                f"in float\n{told}",
            )
        )  # fmt: skip
    if not points:
        return None
    allowed = signed(100 * found.max_drop, found.metric)
    return scatter(
        points, x_label=f"latency on {target}, ms (faster to the left)",
        y_label=f"change of {found.metric}" + (", points" if unit.share else ""), x_text=units.bare, y_text=units.bare,
        rule=(allowed, "the budget"),
    )  # fmt: skip


def signed(points: float, metric: str) -> float:
    """A drop in hundredths as the axis has it: a change, in points or in the metric's own unit."""
    unit = unit_of(metric)
    changed = points if unit.lower_is_better else -points
    return (changed if unit.share else changed / 100) + 0.0


def _noise(effect: Effect | None) -> float:
    return 0.0 if effect is None else math.inf if effect.noise is None else effect.noise
