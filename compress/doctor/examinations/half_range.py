"""Values on the samples beyond float16's range, for targets that compute in it."""

from __future__ import annotations

from collections.abc import Iterator

from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.watching import MASK, Seen
from compress.export.half import LARGEST

# What export leaves in float32 (compress.export.half): its results are read by its like, or are small.
_FLOAT32 = ("pow", "exp", "sum", "cumsum", "mean", "var", "square", "log", "prod", "norm", "softmax", "arange")


def examine(patient: Patient) -> Iterator[Finding]:
    ships = patient.targets_where(float="fp16")
    control = tuple(name for name in patient.targets_where(half="fp16") if name not in ships)
    if not ships and not control:
        return
    beyond = [seen for seen in patient.seen if seen.largest > LARGEST and not _stays(seen)]
    if beyond:
        worst = max(beyond, key=lambda seen: seen.largest)
        yield Finding(
            examination="half_range", severity="blocks" if ships else "costs speed",
            where=beyond[0].place.path or beyond[0].op, source=beyond[0].place.source,
            what=f"{len(beyond)} values leave float16's range (±65504) on the samples, from {beyond[0].op} on, up to "
                 f"{worst.largest:.3g}: they become infinite",
            concerns=("export", *ships, *control),
            remedy="scale down before (divide a query before the product, normalise an input), or write "
                   'float = "fp32" into the target\'s row',
        )  # fmt: skip
    large = [name for name, tensor in patient.weights.items() if tensor.is_floating_point() and tensor.numel()
             and LARGEST < float(tensor.detach().float().abs().nan_to_num(posinf=0.0).max()) < MASK]  # fmt: skip
    for name in large:
        yield Finding(
            examination="half_range", severity="blocks" if ships else "costs speed", where=name,
            what=f"weight {name} has values beyond float16's range (±65504): export clips them there",
            concerns=("export", *ships, *control), remedy="fold the scale into the layer behind it",
        )  # fmt: skip


def _stays(seen: Seen) -> bool:
    return any(word in seen.op.rpartition("aten.")[2].partition(".")[0] for word in _FLOAT32)
