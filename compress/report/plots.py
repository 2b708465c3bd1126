"""The page's plots as plain geometry; ``plots.html`` turns them into inline SVG.

Why not plotly: its script is 4.8 MB in every report, shows nothing without JavaScript, and does not follow the reader's
colour scheme. These are a few kilobytes, print, and carry their hover texts as ``<title>``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.report.axes import Axis, axis
from compress.report.units import bare

WIDTH, HEIGHT = 1000.0, 430.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 24.0, 22.0, 54.0
_CHARACTER, _LINE = 6.6, 15.0  # of a label, in pixels; on the wide side


@dataclass(frozen=True, kw_only=True)
class Point:
    """One engine in a plot, in the axes' units; ``series`` chooses the colour, ``filled`` the marker."""

    x: float
    y: float
    label: str
    title: str  # the hover text
    series: int = 0
    filled: bool = True
    square: bool = False
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A point in pixels: its error bars, and where its label stands; ``leader`` joins a label that had to move away."""

    point: Point
    x: float
    y: float
    x_bar: tuple[float, float] | None
    y_bar: tuple[float, float] | None
    text_x: float  # where the text begins, or ends if ``anchor`` is "end"
    text_y: float
    anchor: str
    leader: bool


@dataclass(frozen=True, kw_only=True)
class Scatter:
    x: Axis
    y: Axis
    markers: tuple[Marker, ...]
    rule: tuple[float, str] | None = None  # a horizontal line: pixel and text
    rule_y: float = 0.0  # where its text stands, which ends with the line
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Lines:
    """One curve over epochs; ``path`` is SVG's, ``dots`` are (x, y, hover text)."""

    title: str
    x: Axis
    y: Axis
    path: str
    dots: tuple[tuple[float, float, str], ...]
    rule: tuple[float, str] | None  # a horizontal line: pixel and text
    width: float
    height: float


def scatter(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    y_text: Callable[[float], str],
    x_text: Callable[[float], str] = bare,
    rule: tuple[float, str] | None = None,
) -> Scatter:
    """``points`` on a logarithmic x axis, with labels that cover neither each other nor a marker.

    Args:
        points: at least one.
        x_label, y_label: with their units.
        y_text, x_text: of a tick.
        rule: a y value to mark, and its text.
    """
    xs = [v for p in points for v in (p.x, *(p.x_interval or ())) if v > 0]
    ys = [v for p in points for v in (p.y, *(p.y_interval or ()))] + ([rule[0]] if rule else [])
    across = axis(xs, label=x_label, start=_LEFT, end=WIDTH - _RIGHT, log=True, text=x_text)
    up = axis(ys, label=y_label, start=HEIGHT - _BOTTOM, end=_TOP, text=y_text)
    at = [(across.at(p.x), up.at(p.y)) for p in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    bars = [_span(up, point.y_interval) for point in points]
    taken += [(x - 2, min(bar), x + 2, max(bar)) for (x, _), bar in zip(at, bars, strict=True) if bar]
    wide = [_span(across, point.x_interval) for point in points]
    taken += [(min(bar), y - 2, max(bar), y + 2) for (_, y), bar in zip(at, wide, strict=True) if bar]
    rule_y = 0.0
    if rule:
        line, end = up.at(rule[0]), across.end - 4
        start = end - len(rule[1]) * _CHARACTER
        sides = [(start, line - 6 - _LINE, end, line - 2), (start, line + 2, end, line + 6 + _LINE)]
        beside = min(sides, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(beside)
        rule_y = round(beside[3] - 4, 1)
    markers = []
    for point, (x, y) in zip(points, at, strict=True):
        box, leader = _label_box(point.label, x, y, taken) if point.label else ((x, y, x, y), False)
        taken.append(box)
        anchor = "start" if box[0] > x else "end" if box[2] < x else "middle"
        text_x = {"start": box[0], "end": box[2], "middle": (box[0] + box[2]) / 2}[anchor]
        markers.append(
            Marker(
                point=point,
                x=x,
                y=y,
                leader=leader,
                text_x=round(text_x, 1),
                text_y=round(box[3] - 4, 1),
                anchor=anchor,
                x_bar=_span(across, point.x_interval),
                y_bar=_span(up, point.y_interval),
            )
        )
    return Scatter(x=across, y=up, markers=tuple(markers), rule=(up.at(rule[0]), rule[1]) if rule else None,
                   rule_y=rule_y)  # fmt: skip


def lines(
    title: str,
    points: Sequence[tuple[float, float]],
    *,
    x_label: str,
    y_text: Callable[[float], str] = bare,
    rule: tuple[float, str] | None = None,
    width: float = 480,
    height: float = 230,
) -> Lines:
    """One curve through ``points``, each ``(x, y)``, in the order of x; ``rule`` is a y value to mark, and its text."""
    points = sorted(points)
    across = axis([x for x, _ in points], label=x_label, start=62, end=width - 16, padding=0.02, smallest_step=1)
    ys = [y for _, y in points] + ([rule[0]] if rule else [])
    up = axis(ys, label="", start=height - 44, end=30, text=y_text)
    at = [(across.at(x), up.at(y)) for x, y in points]
    return Lines(
        title=title,
        x=across,
        y=up,
        path="M" + " L".join(f"{x},{y}" for x, y in at),
        width=width,
        height=height,
        dots=tuple(
            (x, y, f"{x_label} {point[0]:g}: {y_text(point[1])}") for (x, y), point in zip(at, points, strict=True)
        ),
        rule=(up.at(rule[0]), rule[1]) if rule else None,
    )


def _span(scale: Axis, interval: tuple[float, float] | None) -> tuple[float, float] | None:
    if interval is None or (scale.is_log and interval[0] <= 0):
        return None
    return scale.at(interval[0]), scale.at(interval[1])


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _label_box(text: str, x: float, y: float, taken: Sequence[Box]) -> tuple[Box, bool]:
    """The place for a label that is near and covers least, and whether a line must join it to its marker."""
    width = len(text) * _CHARACTER
    places = []
    for distance in (0.0, 18.0, 36.0, 54.0, 72.0, 90.0, 108.0):
        shift = distance + (6 if distance else 0)
        after, before, above, below = x + 10, x - 10 - width, y - shift, y + shift
        for left, middle in (
            (after, above),
            (after, below),
            (before, above),
            (before, below),
            (x - width / 2, y - 18 - distance),
            (x - width / 2, y + 18 + distance),
        ):
            box = (left, middle - _LINE / 2, left + width, middle + _LINE / 2)
            outside = box[0] < _LEFT + 2 or box[2] > WIDTH - 4 or box[1] < 4 or box[3] > HEIGHT - _BOTTOM - 2
            cost = sum(_overlap(box, other) for other in taken) + distance + (10_000 if outside else 0)
            places.append((cost, box, distance > 0))
    _, box, leader = min(places, key=lambda place: place[0])
    return box, leader


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
