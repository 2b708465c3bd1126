"""The rounds of a search, as the page and the terminal show them: what each cost and gained, and each part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.report import units
from compress.report.plots import Point, Scatter, scatter
from compress.report.schema import Stage, unit_of
from compress.report.stages import label, result
from compress.report.summaries import Round, RoundFigures, Search

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a component, or all that one combination of modalities reaches, is in a round and was in round 0.

    ``time_us`` is by target, of the engine that would ship; ``points`` what it alone in int8 loses, at worst.
    """

    name: str
    modality: str
    macs: int
    macs_before: int
    params: int
    time_us: dict[str, float]
    time_before_us: dict[str, float]
    points: float | None


def ships(one: Round, target: str) -> tuple[str, RoundFigures] | None:
    """The precision of what would ship of a round, and its figures."""
    form = one.ships.get(target)
    return None if form is None else (form, one.measured[target][form])


def whole(found: Search) -> list[Round]:
    """The rounds that did not fail."""
    return [one for one in found.rounds if one.failure is None]


def seconds(one: Round) -> float:
    return sum(stage.seconds for stage in one.stages)


def steps(one: Round, metric: str) -> list[tuple[str, str, float]]:
    """Each stage of a round: what it is called, what it did, and its time."""
    typed = [Stage(stage=s.stage, target_scheme=s.target_scheme, summary=s.summary, seconds=s.seconds)
             for s in one.stages if s.stage not in ("measure", "parts")]  # fmt: skip
    return [(label(stage), result(stage, metric), stage.seconds or 0.0) for stage in typed]


def components(found: Search, one: Round) -> list[Share]:
    """The components of a round beside those of round 0."""
    first, lost = found.rounds[0], _lost(one, "component")
    return [
        Share(
            name=name, modality=own.modality, macs=own.macs, params=own.params,
            macs_before=first.components[name].macs if name in first.components else 0,
            time_us=_times(found, one, [name]), time_before_us=_times(found, first, [name]), points=lost.get(name),
        )
        for name, own in one.components.items()
    ]  # fmt: skip


def modalities(found: Search, one: Round) -> list[Share]:
    """What the same modalities reach, added up over the components."""
    first, lost = found.rounds[0], _lost(one, "modality")
    groups: dict[str, list[str]] = {}
    for name, own in one.components.items():
        groups.setdefault(own.modality, []).append(name)
    return [
        Share(
            name=modality, modality=modality, macs=sum(one.components[name].macs for name in names),
            macs_before=sum(first.components[name].macs for name in names if name in first.components),
            params=sum(one.components[name].params for name in names), time_us=_times(found, one, names),
            time_before_us=_times(found, first, names), points=lost.get(modality),
        )
        for modality, names in groups.items()
    ]  # fmt: skip


def curve(found: Search, target: str) -> Scatter:
    """The trade-off on a target: the metric's change over the latency of every engine of every round."""
    unit, points = unit_of(found.metric), []
    for one in whole(found):
        for precision, figures in one.measured[target].items():
            lost, shipped = figures.drop, ships(one, target)
            chosen = one.number == found.kept and shipped is not None and shipped[1] is figures
            ends = sorted(_signed(points, found.metric) for points in lost.interval)
            points.append(
                Point(
                    x=figures.latency_ms, y=_signed(lost.points, found.metric), y_interval=(ends[0], ends[1]),
                    series=1 if chosen else 0 if shipped and shipped[1] is figures else 4, square=chosen,
                    filled=shipped is not None and shipped[1] is figures,
                    label=f"{one.number}, {precision}{' (kept)' if chosen else ''}",
                    title=f"round {one.number}, {precision}\n{units.milliseconds(figures.latency_ms)}, "
                    f"{units.factor(figures.speedup)}, "
                    f"{units.change_with_interval(lost.points, lost.interval, unit)}, {units.size(figures.size_bytes)}",
                )
            )  # fmt: skip
    return scatter(
        points, x_label=f"latency on {target}, ms (faster to the left)",
        y_label=f"change of {found.metric}" + (", points" if unit.share else ""), x_text=units.bare, y_text=units.bare,
        rule=(_signed(100 * found.max_drop, found.metric), "the budget"),
    )  # fmt: skip


def table(found: Search) -> Table:
    """For the terminal: a row for each round."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", show_edge=False)
    made.add_column("round", overflow="fold")
    headings = [text for target in found.targets for text in (f"ms, {target}", "speed-up")]
    for heading in ("change", *headings, "MACs", "size", "time"):
        made.add_column(heading, justify="right", overflow="fold")
    unit = unit_of(found.metric)
    for one in found.rounds:
        name = f"{one.number}" + (f" from {one.began}" if one.began is not None else "")
        if one.failure is not None:
            made.add_row(f"{name}, failed", *[units.NONE] * (len(headings) + 3), units.seconds(seconds(one)))
            continue
        cells = []
        for target in found.targets:
            shipped = ships(one, target)
            cells += [units.NONE] * 2 if shipped is None else [
                units.number(shipped[1].latency_ms), units.factor(shipped[1].speedup)]  # fmt: skip
        made.add_row(name, units.change(one.points or 0.0, unit), *cells, units.count(one.macs), units.size(size(one)),
                     units.seconds(seconds(one)), style="bold" if one.number == found.kept else "")  # fmt: skip
    made.caption = "bold: what was kept"
    return made


def size(one: Round) -> int:
    """Of the largest engine that would ship."""
    return max((shipped[1].size_bytes for target in one.measured if (shipped := ships(one, target))), default=0)


def _times(found: Search, one: Round, names: Sequence[str]) -> dict[str, float]:
    """Target -> the time of the components ``names`` in what would ship; none where its profile tells none."""
    times = {}
    for target in found.targets:
        shipped = ships(one, target)
        own = [] if shipped is None else [shipped[1].components_us[n] for n in names if n in shipped[1].components_us]
        if own:
            times[target] = sum(own)
    return times


def _lost(one: Round, kind: str) -> dict[str, float]:
    lost: dict[str, float] = {}
    for parts in one.parts.values():
        for part in parts:
            if part.kind == kind and part.int8 is not None and part.int8.drop is not None:
                lost[part.name] = max(lost.get(part.name, part.int8.drop.points), part.int8.drop.points)
    return lost


def _signed(points: float, metric: str) -> float:
    """A drop in hundredths as the axis has it: a change, in points or in the metric's own unit."""
    unit = unit_of(metric)
    changed = points if unit.lower_is_better else -points
    return (changed if unit.share else changed / 100) + 0.0
