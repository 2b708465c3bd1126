"""Which part of the speed-up is pruning's, which half precision's and which int8's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.bench.record import BenchRecord, BenchRow
from compress.report.units import NONE, minus
from compress.report.verdict import AGAINST

_HALF = ("bf16", "fp16")
LITTLE = 1.1  # a gain in all below which its parts, of which some may be losses, are no sensible shares of it


@dataclass(frozen=True, kw_only=True)
class Step:
    """From one engine to the next: ``gain`` is how many times faster the second is, below 1 where it is slower."""

    cause: str  # "pruning", "bf16", "int8"
    name: str  # the engine reached
    before_ms: float
    after_ms: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Credit:
    """The steps from the original's fp32 engine to the last shipped one of a target; their gains multiply to ``total``.

    Gains are quotients of the rows' own speed-ups, so that ``total`` is the speed-up of the table above it;
    ``different`` is what that one says. ``invalid``: the times of an engine among them are marked so.
    """

    target: str
    original_ms: float
    steps: tuple[Step, ...]
    different: bool | None
    invalid: bool

    @property
    def total(self) -> float:
        return math.prod(step.gain for step in self.steps)

    @property
    def longest_ms(self) -> float:
        return max(self.original_ms, *(step.after_ms for step in self.steps))

    @property
    def shares(self) -> tuple[str, ...]:
        """Each step's part of the whole on a logarithmic scale, where factors add up; none where little was gained."""
        whole = math.log(self.total)
        if self.total < LITTLE or self.different is False:
            return (NONE,) * len(self.steps)
        return tuple(minus(f"{100 * math.log(step.gain) / whole:.0f} %") for step in self.steps)


def credits(bench: BenchRecord) -> tuple[Credit, ...]:
    """One credit for each target whose original fp32 engine and a shipped engine were measured, in the rows' order.

    The shares depend on the order they are taken in, which is: pruning (fp32 against fp32), half precision where the
    target has it, then int8. A step whose engine was not measured is merged into the next.
    """
    found = []
    for target in dict.fromkeys(row.target for row in bench.rows):
        rows = [row for row in bench.rows if row.target == target and row.latency_ms is not None]
        original = _first(rows, ("original",), ("fp32",))
        steps = _steps(rows, original.latency_ms.p50) if original and original.latency_ms else ()
        if original and original.latency_ms and steps:
            reached = {row.name: row for row in rows if row.name in {step.name for step in steps}}
            found.append(Credit(
                target=target, original_ms=original.latency_ms.p50, steps=steps,
                different=reached[steps[-1].name].speedup[AGAINST].different,
                invalid=any(mark.kind == "INVALID" for row in (original, *reached.values()) for mark in row.marks),
            ))  # fmt: skip
    return tuple(found)


def _steps(rows: Sequence[BenchRow], before_ms: float) -> tuple[Step, ...]:
    steps: list[Step] = []
    merged, reached = "", 1.0
    for cause, precisions in (("pruning", ("fp32",)), ("half", ("bf16", "fp16")), ("int8", ("int8",))):
        row = _first(rows, ("shipped", "control"), precisions)
        if row is None or row.latency_ms is None or AGAINST not in row.speedup:
            merged = "pruning + " if cause == "pruning" else merged
            continue
        name = merged + (row.precision if cause == "half" else cause)
        ratio = row.speedup[AGAINST].ratio
        after_ms = row.latency_ms.p50
        steps.append(Step(cause=name, name=row.name, before_ms=before_ms, after_ms=after_ms, gain=ratio / reached))
        before_ms, merged, reached = after_ms, "", ratio
    return tuple(steps)


def _first(rows: Sequence[BenchRow], roles: tuple[str, ...], precisions: tuple[str, ...]) -> BenchRow | None:
    return next((row for row in rows if row.role in roles and row.precision in precisions), None)
