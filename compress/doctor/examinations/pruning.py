"""What prune could not shrink, and why; what it could is one of the facts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, shortened
from compress.errors import CompressError


def examine(patient: Patient) -> Iterator[Finding]:
    from compress.prune import prunable
    from compress.prune.config import UNITS

    if patient.model is None:
        return
    try:
        groups, skipped = prunable(patient.model, factory=patient.factory)
    except CompressError as error:
        yield Finding(
            examination="pruning", severity="note", where="the model", what=f"it cannot be pruned: {error}",
            concerns=("prune",), remedy="do as it says, or leave prune out of the recipe",
        )  # fmt: skip
        return
    kinds = [f"{sum(g.before for g in groups if g.kind == kind)} {units}" for kind, units in UNITS.items()
             if any(g.kind == kind for g in groups)]  # fmt: skip
    yield Finding(
        examination="pruning", severity="note", where=shortened([group.name for group in groups]), concerns=("prune",),
        what=f"prune could take from {' and '.join(kinds)}" if groups else "nothing in it can be pruned",
        remedy="" if groups else "leave prune out of the recipe",
    )  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for path, reason in skipped.items():
        alike = re.sub(r"(the [\w ]+ )?'[\w.]+' \((\w+)\)", r"a \2", reason)
        reasons.setdefault(alike, []).append(path)
    for reason, paths in reasons.items():
        yield Finding(
            examination="pruning", severity="note", where=shortened(paths), concerns=("prune",),
            what=f"{len(paths)} module{'s' * (len(paths) > 1)} keep{'s' * (len(paths) == 1)} all channels: {reason}",
        )  # fmt: skip
