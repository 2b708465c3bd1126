"""What the calibration samples cover, as the page and the terminal show it."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report.schema import Record, summary
from compress.report.summaries import CoveredComponent, CoveredSamples, QuantizeSummary

SHOWN = 8   # findings on the terminal


def findings(record: Record) -> list[str]:
    """What needs a look, each once however many schemes were quantized for."""
    return list(dict.fromkeys(one.text for found in _quantized(record) for one in found.coverage.findings))


def samples(record: Record) -> list[CoveredSamples]:
    """Of each set; every scheme takes the same."""
    return next((found.coverage.samples for found in _quantized(record) if found.coverage.samples), [])


def components(record: Record) -> dict[str, tuple[CoveredComponent, float]]:
    """Of each component, and the largest share that is clipped of one of its tensors, under the first scheme."""
    found = next((one for one in _quantized(record) if one.coverage.components), None)
    if found is None:
        return {}
    owner = {operator.path: operator.component for operator in found.operators}
    clipped = dict.fromkeys(found.coverage.components, 0.0)
    for tensor in found.coverage.tensors:
        name = owner.get(tensor.layer)
        if name in clipped:
            clipped[name] = max(clipped[name], tensor.clipped)
    return {name: (one, clipped[name]) for name, one in found.coverage.components.items()}


def told(lines: Sequence[str], most: int = SHOWN) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more in the report"] if len(lines) > most else [])]


def _quantized(record: Record) -> list[QuantizeSummary]:
    return [found for stage in record.stages or () if isinstance(found := summary(stage), QuantizeSummary)]
