"""The record of a bench, written as JSON (format ``compress.bench``, version 2); every table is a view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compress.errors import CompressError

FORMAT, VERSION = "compress.bench", 2

Role = Literal["original", "shipped", "control", "candidate"]
Scenario = Literal["single_stream", "multi_stream", "offline"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one query of the row's scenario, warm-up excluded.

    Each percentile is the median over restarts of the restart's own percentile, None where there are too few runs for
    it ("n too small"). ``estimates`` are LoadGen's early-stopping estimates over all runs, of "p90", "p95" and "p99":
    upper bounds that hold with 99 % if runs are independent, None where there are too few. ``interval`` is of ``p50``,
    from the order statistics of ``restart_p50``, and encloses the median over restarts with probability ``coverage``.
    ``mean``, ``min`` and ``max`` are over all runs. ``warmup_s`` is the longest time a restart took to become steady.
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
    estimates: Mapping[str, float | None] = field(default_factory=dict)
    warmup_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster than the row ``against``: median over rounds of the ratio of the two p50 of one round.

    ``interval`` is of 95 %. ``different`` is what :func:`compress.intervals.is_different` says of the rounds, stricter
    than whether ``interval`` leaves out 1; None where they are too few to tell.
    """

    against: str
    ratio: float
    interval: tuple[float, float]
    different: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Points (hundredths of the metric) lost against the baseline on the same samples, with a paired 95 % interval.

    Above 0 is worse, of an error rate too.
    """

    points: float
    interval: tuple[float, float]
    n: int
    method: str
    verdict: str                       # "within budget", "over budget" or "undecidable at n=..."


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The metric on the validation set, of the very engine that was timed; ``drop`` is None for the baseline itself.

    ``share`` is whether it is told in per cent and points, ``lower_is_better`` whether it is an error.
    """

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    drop: Drop | None
    share: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A layer as the backend says it ran.

    ``component`` is whose it is, None where its engine does not tell; ``macs`` its multiply-accumulates where its
    shapes tell them; ``seen`` what the backend shows of how an arithmetic layer ran: kernel, types, neighbours. Time
    and ``macs`` are of all runs of its ``graph`` that a query takes.
    """

    name: str
    type: str
    precision: str
    time_us: float | None
    component: str | None = None
    macs: int | None = None
    seen: str | None = None
    graph: str | None = None


@dataclass(frozen=True, kw_only=True)
class ComponentRow:
    """The layers of one component together, times as the backend's profile gives them.

    Each mapping is by the precision the layers ran in: ``precisions`` counts the arithmetic ones, ``times_us`` is of
    all. ``roofline`` is the share of the machine's peak that the arithmetic reached in ``time_us``.
    """

    layers: int
    time_us: float | None              # None where the backend gives no times
    precisions: Mapping[str, int]
    times_us: Mapping[str, float]
    macs: Mapping[str, int]
    roofline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most multiply-accumulates a second of one machine, backend, precision and number of threads.

    ``note`` says what ran, or where the figure is from. A datasheet's is another thing than a measured one: no program
    reaches it. A ``busy`` one was measured while others used the machine, and is rather too low.
    """

    macs_per_s: float
    source: Literal["measured", "datasheet"]
    note: str
    busy: bool = False


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """``share`` is the time the arithmetic would take at the peaks, of the time (p50) it took.

    ``macs`` and ``peaks`` are by the precision the layers really ran in. ``uncounted`` arithmetic layers have shapes
    that do not tell their work: with any, the share is a lower bound.
    """

    share: float
    macs: Mapping[str, int]
    peaks: Mapping[str, Peak]
    uncounted: int


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a reader must know before using a row's times.

    UNSTABLE: the interval of p50 reaches further than 2 % from it, or there are too few processes for one of 95 %.
    INVALID: the machine was not the same throughout, or not alone.
    """

    kind: Literal["UNSTABLE", "INVALID"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class RowTelemetry:
    """The machine while a row was timed, over all of its processes; None is what could not be read.

    ``before`` is the first process's and ``after`` the last's: the clock of the fastest core (the GPU's, for an engine
    on one), the temperature of the hottest zone. Shares are of all cores' time, the median over the processes.
    ``spin_change`` is how much longer a fixed loop took in the slowest reading than in the fastest, as a share: the
    clock as a program feels it.
    """

    clock_mhz_before: float | None
    clock_mhz_after: float | None
    temperature_c_before: float | None
    temperature_c_after: float | None
    spin_change: float | None
    throttled: bool | None
    power_mode: str | None
    power_w: float | None              # mean over the timed parts
    energy_per_inference_mj: float | None  # millijoules a sample, the idle machine's included
    energy_source: str | None          # "RAPL package", "INA3221 VDD_IN", ...
    foreign_cpu_share: float | None
    steal_share: float | None
    memory_available_bytes: int | None  # the least of any process


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How an answer comes: the medians over the processes. What comes before the first token is in ``first_token_ms``.

    ``tokens`` are those of the query that is timed, for each of its samples; ``tokens_per_s``, of each sample, are of
    those after the first, None where there are none.
    """

    tokens: int
    first_token_ms: float
    tokens_per_s: float | None

    def describe(self) -> str:
        """In words: the first token after so long, the others so fast."""
        text = f"the first token after {self.first_token_ms:.3g} ms"
        return text if self.tokens_per_s is None else f"{text}, then {self.tokens_per_s:.3g} tokens/s ({self.tokens})"


@dataclass(frozen=True, kw_only=True)
class EmulatedParity:
    """Outputs under emulation against this machine's of the same engine file: the largest difference, and the answers.

    ``same_answers`` is the share of samples on which the largest value along the last axis is at the same index, and
    integers are the same; of several such outputs the lowest, None where there is none.
    """

    largest_difference: float
    largest_output: float
    same_answers: float | None
    samples: int


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One model on one machine: the engines of its graphs, timed from its inputs to its outputs.

    ``reason`` says why a row failed, or what became of its device.

    ``status`` is

    - "measured": all figures are there.
    - "partial": the bench was cut short; the figures are of the rounds that were done, None where there was none.
    - "device lost": as "partial", because the device went away.
    - "emulated": accuracy is real; latency is None, since the time under emulation is not a measurement.
    - "failed", or what kept the engine from running ("built, not run here", the engine's own state): no figures.

    ``precisions`` counts the arithmetic layers by the precision they ran in; ``unexpected`` names those that the model
    asks in int8 and that ran in another, None where what it asks is not known. ``machine`` is a key of the record's
    ``machines``, None for an engine that ran nowhere.
    """

    name: str
    role: Role
    target: str
    backend: str
    precision: str
    digest: str                        # of what ran, as a session or chain of it says: of engines built there, theirs
    state: str                         # the engine's own
    status: str
    size_bytes: int                    # of all its engines
    machine: str | None = None
    graphs: Mapping[str, str] = field(default_factory=dict)  # graph -> digest of its engine
    scenario: Scenario = "single_stream"
    batch: int = 1                     # samples of one query
    marks: tuple[Mark, ...] = ()
    reason: str | None = None
    load_ms: float | None = None       # median over restarts
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None  # samples
    generation: Generation | None = None   # of a model that answers token by token
    peak_memory_bytes: int | None = None  # high-water mark of the process, the largest of the restarts
    telemetry: RowTelemetry | None = None
    accuracy: Accuracy | None = None
    emulated_parity: EmulatedParity | None = None
    speedup: Mapping[str, Speedup] = field(default_factory=dict)  # "vs_original_fp32" and so on
    precisions: Mapping[str, int] = field(default_factory=dict)
    unexpected: tuple[str, ...] | None = None
    components: Mapping[str, ComponentRow] = field(default_factory=dict)
    roofline: Roofline | None = None   # None where the arithmetic, a peak it needs or the time is not known
    layers: tuple[LayerRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """All rows, how they were measured, and on what. ``order`` lists the timed processes as they ran: (row, round).

    ``machines``, ``versions`` and ``baselines`` are by the machine's name: its facts, the versions of what ran there,
    and the row its others are compared with. ``complete`` is False where processes that were planned did not run.
    """

    metric: str
    config: Mapping[str, Any]
    machines: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, Mapping[str, str]]
    baselines: Mapping[str, str]
    data: Mapping[str, Any] | None     # name, digest and count of the validation set
    order: tuple[tuple[str, int], ...]
    rows: tuple[BenchRow, ...]
    complete: bool = True

    @property
    def losses(self) -> tuple[str, ...]:
        """What became of each device that was lost or not reached."""
        gone = [row for row in self.rows if row.status == "device lost" or (row.status == "failed" and not row.machine)]
        return tuple(dict.fromkeys(row.reason for row in gone if row.reason))

    @property
    def failures(self) -> tuple[str, ...]:
        """What became of each engine that ships and failed where it ran."""
        failed = [row for row in self.rows if row.role == "shipped" and row.status == "failed" and row.machine]
        return tuple(f"{row.name}: {row.reason}" for row in failed)

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
