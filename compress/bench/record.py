"""The record of a bench, written as JSON (format ``compress.bench``, version 1); every table is a view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.errors import CompressError

FORMAT, VERSION = "compress.bench", 1

Role = Literal["original", "shipped", "control", "candidate"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one run, warm-up excluded.

    Each percentile is the median over restarts of the restart's own percentile, None where a restart has too few runs
    for one to be expected beyond it. ``interval`` is of ``p50``, from the order statistics of ``restart_p50``, and
    encloses the median over restarts with probability ``coverage``. ``mean``, ``min`` and ``max`` are over all runs.
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    min: float
    max: float
    interval: tuple[float, float]
    coverage: float
    restarts: int
    runs: int
    restart_p50: tuple[float, ...]     # in the order of the rounds


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster than the row ``against``: median over rounds of the ratio of the two p50 of one round."""

    against: str
    ratio: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Points (hundredths of the metric) lost against the baseline on the same samples, with a paired 95 % interval."""

    points: float
    interval: tuple[float, float]
    n: int
    method: str
    verdict: str                       # "within budget", "over budget" or "undecidable at n=..."


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The metric on the validation set, of the very engine that was timed; ``drop`` is None for the baseline itself."""

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    drop: Drop | None


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A layer as the backend says it ran."""

    name: str
    type: str
    precision: str
    time_us: float | None


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One engine. Figures are None unless ``status`` is "measured"; ``reason`` says why a row failed.

    ``precisions`` counts the arithmetic layers by the precision they ran in; ``unexpected`` names those that the model
    asks in int8 and that ran in another, None where what it asks is not known.
    """

    name: str
    role: Role
    target: str
    backend: str
    precision: str
    digest: str
    state: str                         # the engine's own
    status: str                        # "measured", "failed", or the state that kept it from running
    size_bytes: int
    reason: str | None = None
    load_ms: float | None = None       # median over restarts
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    peak_memory_bytes: int | None = None  # high-water mark of the process, the largest of the restarts
    accuracy: Accuracy | None = None
    speedup: Mapping[str, Speedup] = field(default_factory=dict)  # "vs_original_fp32" and so on
    precisions: Mapping[str, int] = field(default_factory=dict)
    unexpected: tuple[str, ...] | None = None
    layers: tuple[LayerRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """All rows, how they were measured, and on what. ``order`` lists the timed processes as they ran: (name, round)."""

    baseline: str
    metric: str
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    data: Mapping[str, Any] | None     # name, digest and count of the validation set
    order: tuple[tuple[str, int], ...]
    rows: tuple[BenchRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> BenchRecord:
        """The record read back from its JSON.

        Raises:
            CompressError: if it is another format or version, or damaged.
        """
        import msgspec

        if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise CompressError(f"a bench record has format {FORMAT!r} version {VERSION}, this one says "
                                f"{record.get('format')!r} version {record.get('version')!r}: run the bench again")
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise CompressError(f"the bench record is damaged: {error}: run the bench again") from error
