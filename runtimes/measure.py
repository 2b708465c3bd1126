"""The measuring agent: opens a model's engines in a fresh process on the device, times them, runs data through them.

``python -m runtimes.measure JOB.json``. The job::

    {"engines": {graph: folder}, "chain": how they feed each other, as a manifest has it, or null,
     "threads": int or null,
     "latency": {"feed": path.npz, "warmup_s": seconds, "duration_s": seconds, "min_runs": int,
                 "scenario": name, "samples_per_query": int or null} or null,
     "outputs": {"shards": [path.npz, ...], "inputs": [name, ...], "batch": int, "into": path.npz} or null,
     "layers": bool, "result": path.json}

What is inside the clock: the backend's own call with arrays that are already in memory, copying the outputs out of the
backend included; checking the feed, and pre- and post-processing, are not. Of several graphs, or one with a loop, it is
the chain from its inputs to its outputs, as a device app runs it. ``load_ms`` is reading, checking and compiling the
engines, without importing the vendor's package. The result's ``telemetry`` is the machine's state around
the timed part, after the warm-up: :mod:`runtimes.telemetry` says what it holds. ``scenario`` is the host's name for the
query and changes nothing here: :mod:`runtimes.timing` says how one runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.arrays import read_arrays, write_batches
from runtimes.backends import import_backend
from runtimes.engineset import EngineSet, read_engines
from runtimes.errors import RuntimesError
from runtimes.machine import machine_facts, peak_memory_bytes
from runtimes.records import get, string_list, typed, write_json
from runtimes.running import Running
from runtimes.spec import check_feed
from runtimes.timing import samples_of, split_query, time_queries


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do ``job`` in this process, write its result where it says, and return it.

    The high-water mark of memory is read after the latency runs, before data and profiling add to it, and once before
    the engine is opened (``baseline_memory_bytes``).

    Raises:
        RuntimesError: if the job, the engine or a file it names cannot be used.
    """
    where = "measurement job"
    result_path = Path(get(job, "result", str, where))
    threads = job.get("threads")
    engines = read_engines(job, where)
    latency, outputs = job.get("latency"), job.get("outputs")
    parts, per_query = ([], 0) if latency is None else _query(engines, latency)

    for engine in engines.engines.values():
        import_backend(engine.backend)
    baseline = peak_memory_bytes()
    start = time.perf_counter_ns()
    running = Running(engines, threads=None if threads is None else typed(threads, int, f"{where}: 'threads'"))
    load_ns = time.perf_counter_ns() - start
    try:
        timed = None if latency is None else time_queries(running.run, parts, per_query, latency)
        peak = peak_memory_bytes()
        samples = None if outputs is None else _write_outputs(engines, running, outputs)
        feed = parts[0] if parts else None
        generation = None if feed is None else running.generation(feed)
        layers = None
        if job.get("layers"):
            layers = [{"graph": graph, **vars(layer)} for graph, layer in running.layers(feed)]
        versions = {**running.versions(), "numpy": np.__version__}
    finally:
        running.close()
    result = {
        "digest": engines.digest,
        "backend": engines.backend,
        "device": engines.device,
        "precision": engines.precision,
        "threads": threads,
        "load_ms": load_ns / 1e6,
        "latencies_ns": timed.latencies_ns if timed else None,
        "samples_per_query": timed.samples_per_query if timed else None,
        "warmup": {"seconds": timed.warmup_s, "steady": timed.steady} if timed else None,
        "telemetry": timed.telemetry if timed else None,
        "generation": generation,
        "baseline_memory_bytes": baseline,
        "peak_memory_bytes": peak if latency is not None else peak_memory_bytes(),
        "samples": samples,
        "layers": layers,
        "versions": versions,
        "machine": machine_facts(),
    }
    write_json(result_path, result)
    return result


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m runtimes.measure JOB.json", file=sys.stderr)
        return 2
    try:
        measure(_read_job(Path(arguments[0])))
    except RuntimesError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _read_job(path: Path) -> dict[str, Any]:
    try:
        return typed(json.loads(path.read_bytes()), dict, str(path))
    except (OSError, ValueError) as error:
        raise RuntimesError(f"{path} is not a measurement job ({error}): name the job's JSON file") from error


def _write_outputs(engines: EngineSet, running: Running, settings: Mapping[str, Any]) -> int:
    """Run every sample of the shards through the engines, write all outputs to one file; return how many samples.

    Outputs may differ in shape from batch to batch, as transcripts of sounds of different lengths do.
    """
    where = "measurement job: 'outputs'"
    shards, names = string_list(settings, "shards", where), string_list(settings, "inputs", where)
    batch, into = get(settings, "batch", int, where), Path(get(settings, "into", str, where))
    if batch < 1 or not shards:
        raise RuntimesError(f"{where}: needs a shard and a batch of at least 1, got {len(shards)} and {batch}")
    outputs: list[Mapping[str, np.ndarray]] = []
    samples = 0
    for feed in _batches([Path(shard) for shard in shards], names, batch):
        count, found = len(next(iter(feed.values()))), running.run(check_feed(engines.inputs, feed, source="shard"))
        _check_outputs(engines, found, count)
        outputs.append(found)
        samples += count
    write_batches(into, outputs)
    return samples


def _check_outputs(engines: EngineSet, outputs: Mapping[str, np.ndarray], samples: int) -> None:
    """A score of anything but what the engines say they give would be the score of something else."""
    specs = {spec.name: spec for spec in engines.outputs}
    if outputs.keys() != specs.keys():
        raise RuntimesError(f"{engines.where} gave the outputs {sorted(outputs)} and says it has {sorted(specs)}: "
                            "build it again")
    for name, value in outputs.items():
        spec = specs[name]
        axis = spec.batch_axis
        fixed = axis is None or axis >= value.ndim or isinstance(spec.shape[axis], int)
        if value.dtype != np.dtype(spec.dtype) or value.ndim != len(spec.shape):
            raise RuntimesError(f"output {name!r} of {engines.where} came as {value.dtype} of {value.ndim} axes, and "
                                f"it says {spec.dtype} of {len(spec.shape)}: build it again")
        if axis is not None and not fixed and value.shape[axis] != samples:
            raise RuntimesError(f"output {name!r} of {engines.where} has {value.shape[axis]} answers for {samples} "
                                "samples: build it again")


def _batches(shards: list[Path], names: tuple[str, ...], batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of up to ``batch`` samples, in order; the last of a shard may be smaller."""
    for path in shards:
        arrays = read_arrays(path)
        missing = [name for name in names if name not in arrays]
        if missing:
            raise RuntimesError(f"{path} lacks input {missing[0]!r}: it has {list(arrays)}")
        counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in names}
        if len(set(counts.values())) != 1 or not all(counts.values()):
            raise RuntimesError(f"{path}: the inputs must hold equally many samples and at least one, got {counts}")
        for start in range(0, counts[names[0]], batch):
            yield {name: arrays[name][start : start + batch] for name in names}


def _query(engines: EngineSet, latency: Mapping[str, Any]) -> tuple[list[dict[str, np.ndarray]], int]:
    path = Path(get(latency, "feed", str, "measurement job: 'latency'"))
    return split_query(engines.inputs, read_arrays(path), samples_of(latency), source=str(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
