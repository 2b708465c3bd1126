"""The table of a bench record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.bench.record import BenchRecord, BenchRow, Drop, Speedup

if TYPE_CHECKING:
    from rich.table import Table

EMULATED = "emulated, not a measurement"
TOO_SMALL = "n too small"


def table(record: BenchRecord) -> Table:
    """One row per engine; speed-ups are against the original model's fp32 engine on the same machine.

    Below it, line by line: what makes a row's figures doubtful, and what became of a row that has none.
    """
    from rich.table import Table
    from rich.text import Text

    offline = record.config.get("scenario") == "offline"
    view = Table(title=_title(record), caption=Text(_plain("\n".join(_remarks(record)))), caption_justify="left")
    view.add_column("engine", overflow="fold")
    times = ("samples/s", "p50 ms of a batch") if offline else ("p50 ms", "p90 ms at most", "p99 ms")
    for heading in ("size MB", *times, "speed-up", *_headings(record), "int8 layers"):
        view.add_column(heading, justify="right", no_wrap=True)
    for row in record.rows:
        cells = (_name(row), f"{row.size_bytes / 1e6:.2f}", *_times(row, offline), *_rest(row))
        view.add_row(*(Text(_plain(cell)) for cell in cells), style="bold" if row.role == "shipped" else None)
    return view


def _headings(record: BenchRecord) -> tuple[str, str]:
    """Of the score and its drop."""
    scores = [row.accuracy for row in record.rows if row.accuracy is not None]
    return record.metric, "drop, points" if not scores or scores[0].share else "drop"


def _plain(text: str) -> str:
    """``text`` with "?" for what would steer a terminal: names and reasons may come from a device or a file."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _title(record: BenchRecord) -> str:
    config = record.config
    said = {"multi_stream": "multi stream", "offline": "offline"}.get(str(config.get("scenario")), "single stream")
    parts = [said, *(f"{name} {config[name]}" for name in ("batch",) if name in config),
             *(f"{config[name]} {name if config[name] != 1 else name[:-1]}" for name in ("threads", "restarts")
               if name in config)]
    return ", ".join(parts) + ("" if record.complete else ": incomplete")


def _remarks(record: BenchRecord) -> list[str]:
    scores = [row.accuracy for row in record.rows if row.accuracy is not None]
    lines = [f"drop against {', '.join(record.baselines.values())}; speed-up against the original's fp32 engine, "
             "of the same target if it has one"]
    if not any(row.speedup for row in record.rows) and not any(score.drop for score in scores):
        lines = ["no engine of the original model beside them: no drop and no speed-up"]
    lines += ["intervals 95 %, and 99 % to see a difference in speed; p90 at most: LoadGen's early-stopping estimate"]
    for row in record.rows:
        lines += [f"{row.name}: {mark.kind}, {mark.reason}" for mark in row.marks]
        if row.reason:
            lines.append(f"{row.name}: {row.status}, {row.reason}")
        if row.generation is not None:
            lines.append(f"{row.name}: {row.generation.describe()}")
        if row.emulated_parity is not None:
            found = row.emulated_parity
            answers = "" if found.same_answers is None else f"{found.same_answers:.2%} of {found.samples} answers and "
            lines.append(f"{row.name}: under emulation {answers}outputs within {found.largest_difference:.3g} "
                         f"of this machine's, whose largest is {found.largest_output:.3g}")
    return lines


def _name(row: BenchRow) -> str:
    """The row's name, its precision and target where the name does not tell them, and its marks."""
    missing = " on ".join(part for part in (row.precision, row.target) if part not in row.name)
    return "\n".join(filter(None, [row.name, missing, ", ".join(dict.fromkeys(mark.kind for mark in row.marks))]))


def _times(row: BenchRow, offline: bool) -> tuple[str, ...]:
    time = row.latency_ms
    if time is None:
        return (EMULATED if row.status == "emulated" else row.status, *[""] * (1 if offline else 2))
    p50 = f"{_ms(time.p50)} [{_ms(time.interval[0])}, {_ms(time.interval[1])}]"
    if row.status != "measured":
        p50 += f"\n{row.status}, {time.restarts} rounds"
    if offline:
        return (f"{row.throughput_per_s:.1f}", p50)
    return (p50, *(TOO_SMALL if value is None else _ms(value) for value in (time.estimates.get("p90"), time.p99)))


def _ms(value: float) -> str:
    """Microseconds, and three digits of what is shorter than a tenth of a millisecond."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:#.3g}"


def _rest(row: BenchRow) -> tuple[str, ...]:
    score, gain = row.accuracy, row.speedup.get("vs_original_fp32")
    drop = score.drop if score else None
    if row.latency_ms is None and score is None and not row.precisions:
        return ("",) * 4
    arithmetic = sum(row.precisions.values())
    return (
        _speedup(gain) if gain else "",
        (f"{score.value:.2%}" if score.share else f"{score.value:.4g}") if score else "not measured",
        _drop(drop, share=score.share) if score and drop else "",
        f"{row.precisions.get('int8', 0)} of {arithmetic}" if arithmetic else "not known",
    )


def _drop(drop: Drop, *, share: bool) -> str:
    """In points where the metric is a share, in its own unit where it is not."""
    values = [drop.points, *drop.interval]
    lost, low, high = (f"{value:+.2f}" if share else f"{value / 100:+.3g}" for value in values)
    return f"{lost} [{low}, {high}]\n{drop.verdict}"


def _speedup(gain: Speedup) -> str:
    said = {None: "\ntoo few restarts to tell", False: "\nno difference seen", True: ""}[gain.different]
    return f"{gain.ratio:.2f}x [{gain.interval[0]:.2f}, {gain.interval[1]:.2f}]{said}"
