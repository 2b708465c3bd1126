"""The table of a bench record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.bench.record import BenchRecord, BenchRow

if TYPE_CHECKING:
    from rich.table import Table


def table(record: BenchRecord) -> Table:
    """One row per engine; speed-ups are against the original model's fp32 engine."""
    from rich.table import Table

    rows = record.rows
    restarts, batch = record.config["restarts"], record.config["batch"]
    title = f"batch {batch}, {record.config['threads']} threads, {restarts} restarts"
    against = ", ".join(record.baselines.values())
    view = Table(title=title, caption=f"speed-up and drop against {against}; intervals 95 %")
    for heading in ("engine", "target", "precision"):
        view.add_column(heading, overflow="fold")
    for heading in ("size MB", "p50 ms", "p99 ms", "speed-up", "accuracy", "drop, points", "int8 layers"):
        view.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(row.name, row.target, row.precision, f"{row.size_bytes / 1e6:.2f}", *_figures(row),
                     style="bold" if row.role == "shipped" else None)
    for row in rows:
        if row.reason:
            view.caption = f"{view.caption}\n{row.name} failed: {row.reason}"
    return view


def _figures(row: BenchRow) -> tuple[str, ...]:
    if row.latency_ms is None:
        return (row.status, *[""] * 5)
    time, score, gain = row.latency_ms, row.accuracy, row.speedup.get("vs_original_fp32")
    drop = score.drop if score else None
    arithmetic = sum(row.precisions.values())
    return (
        f"{time.p50:.3f} [{time.interval[0]:.3f}, {time.interval[1]:.3f}]",
        "n too small" if time.p99 is None else f"{time.p99:.3f}",
        f"{gain.ratio:.2f}x [{gain.interval[0]:.2f}, {gain.interval[1]:.2f}]" if gain else "",
        f"{score.value:.2%}" if score else "not measured",
        f"{drop.points:+.2f} [{drop.interval[0]:+.2f}, {drop.interval[1]:+.2f}]\n{drop.verdict}" if drop else "",
        f"{row.precisions.get('int8', 0)} of {arithmetic}" if arithmetic else "not known",
    )
