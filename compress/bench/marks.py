"""What happened to the machine while a row was timed, and the marks that a reader must see beside its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from compress.bench.record import Latency, Mark, RowTelemetry
from compress.intervals import CONFIDENCE

WIDEST = 0.02     # how far from p50 its interval may reach, as a share
DRIFT = 0.05      # how much a clock may change between two readings, as a share
FOREIGN = 0.05    # of all cores' time, which others may take


def conditions(rounds: Sequence[Mapping[str, Any]], *, gpu: bool = False) -> RowTelemetry | None:
    """The telemetry of all processes of a row together; None where there is none.

    Args:
        rounds: the results of :mod:`runtimes.measure`, in order.
        gpu: the engine ran on a GPU, so that its clock is the one that counts.
    """
    seen = [result["telemetry"] for result in rounds if result.get("telemetry")]
    if not seen:
        return None
    readings = [moment for one in seen for moment in (one["before"], one["after"])]
    spins = _known(moment["spin_ns"] for moment in readings)
    samples = sum(len(one["latencies_ns"]) * one["samples_per_query"] for one in rounds if one.get("telemetry"))
    joules = [one["energy_j"] for one in seen]
    energy = None if None in joules else 1000 * sum(joules) / samples
    throttled = [one["throttled"] for one in seen]
    modes = list(dict.fromkeys(_known(moment["power_mode"] for moment in readings)))
    return RowTelemetry(
        clock_mhz_before=_clock(readings[0], gpu), clock_mhz_after=_clock(readings[-1], gpu),
        temperature_c_before=_hottest(readings[0]), temperature_c_after=_hottest(readings[-1]),
        spin_change=max(spins) / min(spins) - 1 if spins else None,
        throttled=True if True in throttled else None if None in throttled else False,
        power_mode=", then ".join(modes) or None, power_w=_median(one["power_w"] for one in seen),
        energy_per_inference_mj=energy, energy_source=seen[0]["energy_source"],
        foreign_cpu_share=_median(one["foreign_cpu_share"] for one in seen),
        steal_share=_median(one["steal_share"] for one in seen),
        memory_available_bytes=min(_known(one["memory_available_bytes"] for one in seen), default=None))


def marks(
    time: Latency, rounds: Sequence[Mapping[str, Any]], found: RowTelemetry | None, *, gpu: bool = False
) -> tuple[Mark, ...]:
    """Every reason to mistrust the times of a row, the worst first; ``found`` are its :func:`conditions`."""
    invalid: list[str | None] = []
    if found is not None:
        seen = [result["telemetry"] for result in rounds if result.get("telemetry")]
        invalid = [_throttled(seen), _clock_drift(seen, gpu), _spin_drift(found), _foreign(found), _mode(found)]
    return (*(Mark(kind="INVALID", reason=text) for text in invalid if text),
            *(Mark(kind="UNSTABLE", reason=text) for text in (_interval(time), _unsteady(rounds)) if text))


def _throttled(seen: Sequence[Mapping[str, Any]]) -> str | None:
    """Counters that moved, a reason that holds, or a container's quota that ran out: the sensors have judged each."""
    bad = [one for one in seen if one["throttled"]]
    if not bad:
        return None
    reasons = sorted({reason for one in bad for reason in one["after"].get("throttle_reasons") or ()})
    text = f" ({', '.join(reasons)})" if reasons else ""
    return f"the machine was throttled in {len(bad)} of {len(seen)} processes{text}"


def _clock_drift(seen: Sequence[Mapping[str, Any]], gpu: bool) -> str | None:
    """Like is compared with like: the clocks at the end of each process. Before it, fewer cores are awake."""
    clocks = _known(_clock(one["after"], gpu) for one in seen)
    if not clocks or min(clocks) <= 0 or max(clocks) / min(clocks) - 1 <= DRIFT:
        return None
    return f"the clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz between the processes"


def _spin_drift(found: RowTelemetry) -> str | None:
    if found.spin_change is None or found.spin_change <= DRIFT:
        return None
    return f"the clock drifted: a fixed loop took up to {found.spin_change:.0%} longer than at its fastest"


def _foreign(found: RowTelemetry) -> str | None:
    if found.foreign_cpu_share is None or found.foreign_cpu_share <= FOREIGN:
        return None
    stolen = f", the hypervisor {found.steal_share:.0%}" if (found.steal_share or 0.0) >= 0.005 else ""
    return f"foreign load: others took {found.foreign_cpu_share:.0%} of all cores' time{stolen}"


def _mode(found: RowTelemetry) -> str | None:
    if found.power_mode is None or ", then " not in found.power_mode:
        return None
    return f"the power mode was changed: {found.power_mode}"


def _interval(time: Latency) -> str | None:
    if time.coverage < CONFIDENCE:
        many = "one process is" if time.restarts == 1 else f"{time.restarts} processes are"
        return f"{many} too few for an interval of {CONFIDENCE:.0%}, which takes 6"
    low, high = ((bound - time.p50) / time.p50 for bound in time.interval)
    if low >= -WIDEST and high <= WIDEST:
        return None
    return f"the interval of p50 reaches from {low:+.1%} to {high:+.1%} of it"


def _unsteady(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    bad = [result for result in rounds if result.get("warmup") and not result["warmup"]["steady"]]
    if not bad:
        return None
    longest = max(result["warmup"]["seconds"] for result in bad)
    return f"{len(bad)} of {len(rounds)} processes were not steady after {longest:.1f} s of warm-up"


def _clock(moment: Mapping[str, Any], gpu: bool) -> float | None:
    if gpu:
        clock = moment.get("gpu_clock_mhz")
        return None if clock is None else float(clock)
    return max(moment["clocks_mhz"] or (), default=None)


def _hottest(moment: Mapping[str, Any]) -> float | None:
    return max((moment["temperatures_c"] or {}).values(), default=None)


def _median(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return median(known) if known else None


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]
