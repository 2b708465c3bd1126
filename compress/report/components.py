"""What each component cost before and after: parameters, multiply-accumulates, bytes, and how much of it is int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compress.report.schema import Record, summary
from compress.report.summaries import Operator, PruneSummary, QuantizeSummary


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure of the original and of the compressed model; ``after`` is None where no stage changed or told it."""

    before: int | None = None
    after: int | None = None


@dataclass(frozen=True, kw_only=True)
class ComponentRow:
    """One component; ``operators`` (those with weights: what can be int8) are by scheme."""

    name: str
    parameters: Change = Change()
    macs: Change = Change()
    size_bytes: Change = Change()
    operators: Mapping[str, tuple[Operator, ...]] = field(default_factory=dict)


def component_rows(record: Record) -> tuple[ComponentRow, ...]:
    """The components in the model's order; those that only a stage names come after. Empty where nothing names any."""
    found = [summary(stage) for stage in record.stages or ()]
    prunes = [{part.name: part for part in one.components} for one in found if isinstance(one, PruneSummary)]
    quantizes = {one.scheme: one for one in found if isinstance(one, QuantizeSummary)}  # of one scheme, the last
    original = record.model.components if record.model else {}
    names = dict.fromkeys(
        [*original, *(n for p in prunes for n in p), *(o.component for q in quantizes.values() for o in q.operators)]
    )
    rows = []
    for name in names:
        before = original.get(name)
        first = next((p[name] for p in prunes if name in p), None)
        last = next((p[name] for p in reversed(prunes) if name in p), None)
        operators = {scheme: tuple(o for o in q.operators if o.component == name) for scheme, q in quantizes.items()}
        sizes = [q.size_bytes[name] for q in quantizes.values() if name in q.size_bytes]
        rows.append(
            ComponentRow(
                name=name,
                parameters=Change(
                    before=before.parameters if before else first.params_before if first else None,
                    after=last.params_after if last else None,
                ),
                macs=Change(
                    before=before.macs if before else first.macs_before if first else None,
                    after=last.macs_after if last else None,
                ),
                size_bytes=Change(before=before.size_bytes if before else None, after=min(sizes, default=None)),
                operators=operators,
            )
        )
    return tuple(rows)


def total(rows: tuple[ComponentRow, ...], figure: str) -> Change:
    """The sum of one figure over the components; what no stage changed counts as it was."""
    changes: list[Change] = [getattr(row, figure) for row in rows]
    before = [change.before for change in changes]
    after = [change.before if change.after is None else change.after for change in changes]
    is_changed = any(change.after is not None for change in changes)
    return Change(before=_sum(before), after=_sum(after) if is_changed else None)


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) and known else None
