"""How far the samples used of a set cover what its inputs may be, and stand for the set: counts, and what to mend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.facts import Facts
from runtimes.spec import Dim, TensorSpec

FEW_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that samples do not reach, or reach in a way that ranges suffer from; ``text`` ends with the remedy.

    ``where`` names the input, dimension, layer or component.
    """

    kind: str
    where: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "where": self.where, "text": self.text}


def coverage_of(
    facts: Facts, places: Sequence[int], inputs: Sequence[TensorSpec], name: str
) -> tuple[dict[str, Any], list[Finding]]:
    """The record of the samples at ``places`` beside all of the set ``name``, and what is wrong with them."""
    used = np.asarray(places)
    sizes, missed = _sizes(facts, used, inputs)
    labels, lost = _labels(facts, used)
    seen, constant = _inputs(facts, used, inputs)
    lengths = facts.lengths[used]
    record = {
        "set": name, "samples": len(used), "of": len(facts), "inputs": seen, "sizes": sizes,
        "lengths": [int(lengths.min()), int(np.median(lengths)), int(lengths.max())], "labels": labels,
    }  # fmt: skip
    few = [] if len(used) >= FEW_SAMPLES else [Finding(
        kind="few samples", where=name, text=f"ranges come of {_many(len(used), 'sample')} of {name!r}: use at least "
        f"{FEW_SAMPLES}, better a few hundred")]  # fmt: skip
    return record, [*few, *constant, *missed, *lost]


def _inputs(
    facts: Facts, used: np.ndarray, inputs: Sequence[TensorSpec]
) -> tuple[dict[str, Any], list[Finding]]:
    record, findings = {}, []
    for spec in inputs:
        has, distinct = facts.present[spec.name], len(np.unique(facts.prints[spec.name][used]))
        present = int(np.count_nonzero(has[used]))
        record[spec.name] = {"modality": spec.modality, "present": present, "present_of": int(np.count_nonzero(has)),
                             "distinct": distinct}  # fmt: skip
        what = f"{spec.modality} input {spec.name!r}"
        if distinct == 1 and len(used) > 1:
            findings.append(Finding(kind="constant input", where=spec.name, text=(
                f"{what} {'is the same' if present else 'is zero'} in all {len(used)} samples used: add samples that "
                "differ in it, unless it never changes in use")))  # fmt: skip
        elif present in (0, len(used)) and 0 < np.count_nonzero(has) < len(has):
            number = int(np.count_nonzero(~has if present else has))
            findings.append(Finding(kind="lost kind", where=spec.name, text=(
                f"{what} is {'missing' if present else 'given'} in {_many(number, 'sample')} of the set, in none of "
                f"the {len(used)} used: use more samples")))  # fmt: skip
    return record, findings


def _sizes(
    facts: Facts, used: np.ndarray, inputs: Sequence[TensorSpec]
) -> tuple[dict[str, Any], list[Finding]]:
    declared: dict[str, Dim] = {dim.name: dim for spec in inputs for dim in spec.dims}
    record, findings = {}, []
    for name, values in facts.sizes.items():
        dim, least, most = declared[name], int(values[used].min()), int(values[used].max())
        record[name] = {"min": dim.min, "opt": dim.opt, "max": dim.max, "least": least, "most": most}
        if most < dim.opt or (least == most and dim.min < most < dim.max):
            seen = f"is {most} in every sample" if least == most else f"is {least} to {most}"
            findings.append(Finding(kind="size", where=name, text=(
                f"dimension {name!r} {seen}, declared {dim.min} to {dim.max}, usually {dim.opt}: add samples of the "
                "sizes it has in use")))  # fmt: skip
    return record, findings


def _labels(facts: Facts, used: np.ndarray) -> tuple[dict[str, Any] | None, list[Finding]]:
    if len(facts.classes) < 2:
        return None, []
    all_of = np.bincount(facts.labels, minlength=len(facts.classes))
    counts = np.bincount(facts.labels[used], minlength=len(facts.classes))
    lost = [facts.classes[i] for i in np.flatnonzero((counts == 0) & (all_of > 0))]
    order = np.argsort(counts, kind="stable")
    record = {
        "classes": len(facts.classes), "lost": len(lost),
        "fewest": [facts.classes[order[0]], int(counts[order[0]])],
        "most": [facts.classes[order[-1]], int(counts[order[-1]])],
    }  # fmt: skip
    if not lost:
        return record, []
    named = ", ".join(repr(name) for name in lost[:3]) + (", ..." if len(lost) > 3 else "")
    return record, [Finding(kind="lost label", where="target", text=(
        f"{len(lost)} of {len(facts.classes)} labels ({named}) have none of the {len(used)} samples used: use at least "
        f"{len(facts.classes)}"))]  # fmt: skip


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
